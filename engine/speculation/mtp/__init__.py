"""A model's own layer for multi-token prediction as drafter: of the model's hidden states it says what follows."""

"""A plan's account of a model's own layer for multi-token prediction: its bytes, and what it drafts."""

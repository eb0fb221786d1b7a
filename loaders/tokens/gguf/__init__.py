"""A GGUF's metadata as a tokenizer of the `tokenizers` library, and what belongs to it."""

"""A GGUF model that can be run: its tensors, and where each goes."""

"""What model a GGUF file holds: its architecture from the tensors, and the config of one that runs."""

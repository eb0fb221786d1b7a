"""Parts of layers as the ops want them, which few models have."""

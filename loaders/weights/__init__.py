"""From stored tensors to packed weights in place; random and meta weights."""

"""Tables that stay in their file, weights of what is made of their rows, and those of gated streams."""

"""What a table has for short runs of tokens, added to residual streams."""

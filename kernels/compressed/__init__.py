"""Attention over a window of tokens and compressed entries."""

"""Attention to some keys of the context alone: who chooses them, and the plain twins of the ops for it."""

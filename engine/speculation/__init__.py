"""Speculative decoding: tokens that may come next are guessed, and verified in one pass (docs/speculation.md)."""

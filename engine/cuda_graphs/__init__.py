"""Decode steps captured once and replayed, with the CPU's experts behind signals in pinned memory."""

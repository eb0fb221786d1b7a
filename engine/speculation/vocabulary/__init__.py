"""Drafts choose among the first rows of the head and special tokens: fewer rows take less, and miss more."""

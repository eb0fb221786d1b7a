"""Whole layers on other machines, with their part of the cache: who holds which, and how a pass goes through them."""

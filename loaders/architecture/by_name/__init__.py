"""Configs read by names alone: the text part of a wrapper, keys that may change sizes, families that nobody knows."""

"""Hosts of experts in the terminal."""

"""`headrace trace` in a terminal."""

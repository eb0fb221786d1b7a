"""`headrace doctor` in a terminal."""

"""Cases of what a few families ask of the ops."""

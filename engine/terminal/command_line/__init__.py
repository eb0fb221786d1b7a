"""How commands take options and arguments, and what is said of those that they do not have."""

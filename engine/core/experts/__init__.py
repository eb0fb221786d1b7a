"""The experts of a run that is put together: which policy rules them, and those that stay in files."""

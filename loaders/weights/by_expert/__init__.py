"""Single experts of a checkpoint, read when they are wanted."""

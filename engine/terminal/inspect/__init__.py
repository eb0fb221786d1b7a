"""What `headrace inspect` prints."""

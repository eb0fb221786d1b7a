"""What a pass says of itself beside its result."""

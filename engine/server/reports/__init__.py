"""What a server says of itself: metrics, and a line for every request."""

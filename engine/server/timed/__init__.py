"""Work beside the event loop that may have to be stopped."""

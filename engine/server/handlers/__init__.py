"""What answers a request: reads it, asks the service, writes the answer of its API."""

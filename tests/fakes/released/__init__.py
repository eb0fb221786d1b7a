"""Released configs of every family that runs, as the hub has them."""

"""The account of every pass: bytes and seconds by tier, what they should have been, and drift."""

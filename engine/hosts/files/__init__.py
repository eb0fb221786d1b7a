"""A model's files over the connection, for hosts without a copy: what the coordinator sends, and how they read."""

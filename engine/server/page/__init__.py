"""What the page shows: its files, and numbers of the engine for whoever looks at them."""

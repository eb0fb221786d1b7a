"""What the commands print. No logic of a run."""

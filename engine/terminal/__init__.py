"""What a user meets in a terminal."""

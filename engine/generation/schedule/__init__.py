"""Which sequences run in the next pass, and how many tokens of each."""

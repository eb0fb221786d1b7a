"""What all products share: unpacking of stored weights, dots of few tokens, tiles of many."""

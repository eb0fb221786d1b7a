"""What kernels share: unpacking of stored weights, dots of few tokens, tiles of many, the sequence of a token."""

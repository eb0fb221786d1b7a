"""Which experts tokens chose, kept in a file: recorded while a model runs, read as arrays, summed up."""

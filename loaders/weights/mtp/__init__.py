"""A layer for multi-token prediction that lies beside a model: found, named, and where its tensors go."""

"""Where a model comes from: config, tensors, tokenizer, hub. Knows packed weights, not where they will be computed."""

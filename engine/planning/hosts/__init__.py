"""Plans of a model on several machines: what they are, how fast experts or layers on them are, and which is better."""

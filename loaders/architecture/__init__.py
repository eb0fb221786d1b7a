"""What a model of any family weighs and computes, for plans: sizes and FLOPs, no weights."""

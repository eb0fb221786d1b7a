"""The forward pass: decoder, KV cache, rope, the inputs of a pass and their way to the device."""

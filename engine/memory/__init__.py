"""What fits where: weights, KV cache and buffers by tier, decided before memory is taken; pinned memory."""

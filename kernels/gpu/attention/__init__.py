"""Attention over the paged KV cache, and what comes before it: norms of heads, rope, cache writes."""

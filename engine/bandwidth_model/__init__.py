"""What a pass should take: rates of a machine, bytes and FLOPs of a pass, seconds by tier."""

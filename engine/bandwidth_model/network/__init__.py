"""Hosts of experts in the bandwidth model: bytes of messages, seconds of a layer, and who should get how much."""

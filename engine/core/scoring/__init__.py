"""Logits of whole texts, outside of the schedule."""

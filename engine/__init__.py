"""Runs a model: schedule, forward, sample, account. `llm.py` puts the pieces together; nothing else builds them."""

"""Experts on other machines: who holds them, how rows go there and come back, what happens when a host is lost."""

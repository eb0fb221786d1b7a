"""A cache of experts in VRAM beside all of them in RAM: a policy says which are there, and what comes and goes."""

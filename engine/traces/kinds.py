"""Kinds of made-up routing (`synthetic.py` says what they are), for a command line that loads no numpy."""

KINDS = ("uniform", "zipf", "topics")

"""Answers that follow a grammar, whole or from a mark on."""

"""Answers in a form that a request asks for: grammars of text, and of calls."""

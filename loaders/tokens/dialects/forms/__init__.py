"""Grammars that hold a model to its tools: calls as its dialect writes them, arguments as the tools' schemas say.

`calls.grammar_of` makes one, in llguidance's Lark, of the dialect's `Form`s. What it lets a model write, the machine of
the dialect reads back as calls of these tools.
"""

"""What a model's answer says: reasoning, text and calls of tools, read from its tokens as they come.

`choose.choose` says which dialect a model writes, `machine.start` makes the machine that reads one answer.
"""

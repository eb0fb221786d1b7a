"""`headrace inspect`: what a model is and what runs it here, from headers alone.

`stored.py` says which formats its tensors have, `text.py` what its tokenizer and chat template are, `here.py` whether
this machine runs it; `facts.py` puts them together. Nothing here imports torch.
"""

"""Predicts a run before the download: what fits where, how fast it will be, what bounds it.

`article.py` and `exact.py` hold the arithmetic, `storage.py` the bytes of a model, `hardware.py` a machine as numbers,
`placement.py` who lies where, `speed.py` the time that takes, `plan.py` puts them together. Nothing here imports torch.
"""

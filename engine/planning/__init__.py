"""Predicts a run before the download: what fits where, how fast it will be, what bounds it.

`articles.py` and `bandwidth_model/flop_counts.py` hold the arithmetic, `storage.py` the bytes of a model,
`bandwidth_model/hardware.py` a machine as numbers, `layouts.py` who lies where, `speed.py` the work of a pass,
`bandwidth_model/roofline.py` its time; `plan.py` puts them together. Nothing here imports torch.
"""

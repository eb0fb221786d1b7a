"""Products of a normed residual stream in one launch with what is added to it before and with its norm: for a few
tokens, where a launch costs more than reading a row again in every program."""

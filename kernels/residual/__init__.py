"""Residual streams, where a layer has several."""

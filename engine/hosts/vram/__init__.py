"""Experts in the VRAM of a coordinator, beside those on hosts."""

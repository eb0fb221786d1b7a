"""How rates are measured: kernels, links, both at once, and which samples count."""

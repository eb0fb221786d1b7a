"""How many bytes weights take: formats, what a config or --quant says of them, the mixes of GGUF."""

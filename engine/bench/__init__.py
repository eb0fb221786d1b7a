"""Programs that run a model to learn about it or the machine: speed, perplexity, calibration, diagnosis."""

"""From a prompt to tokens: requests, sequences, the scheduler, the sampler, stop strings."""

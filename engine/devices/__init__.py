"""What the machine has: RAM and its threads, GPUs with their streams and events, the CUDA driver, PCIe links."""

"""What works beside the GPU that a step is captured on."""

"""Where a layer's routed experts are computed: in RAM, on GPUs, or copied from one to the other."""

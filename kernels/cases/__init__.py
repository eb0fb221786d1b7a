"""Shapes, inputs and tolerances of every op: read by tests, benchmarks and the GPU suite."""

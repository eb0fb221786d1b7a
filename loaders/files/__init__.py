"""File formats: safetensors, GGUF headers, reading ahead."""

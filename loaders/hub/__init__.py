"""Models of the Hugging Face hub: found, downloaded, or only their headers read."""

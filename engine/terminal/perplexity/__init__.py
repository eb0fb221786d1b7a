"""What `headrace perplexity` prints and draws."""

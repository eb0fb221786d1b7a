"""How well a model predicts a text, and what its size and its experts do to that."""

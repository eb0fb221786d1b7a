"""What latent and recurrent layers have besides attention: rotations of views, products by head, states by slot."""

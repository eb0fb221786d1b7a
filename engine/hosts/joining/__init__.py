"""How hosts and a coordinator find each other, and who is let in."""

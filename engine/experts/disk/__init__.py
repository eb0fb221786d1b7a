"""Experts that stay in the model's file: read when they are chosen, some of them kept in RAM as a policy says."""

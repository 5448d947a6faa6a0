"""Ranks: who is there, and the process groups between them."""

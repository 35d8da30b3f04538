"""Residences: the KV of runs of tokens, and which request refers to which."""

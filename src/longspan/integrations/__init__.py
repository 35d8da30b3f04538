"""Longspan's policy inside other engines."""

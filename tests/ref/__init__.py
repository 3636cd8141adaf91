"""Slow plain-Python twins, written from the format pages and not from the code: the oracles of property tests."""

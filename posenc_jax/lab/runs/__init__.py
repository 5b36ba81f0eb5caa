"""Runs: what they store, and how they start, stop and are read."""

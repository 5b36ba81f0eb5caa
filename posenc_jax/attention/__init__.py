"""Attention, written once, and the ways in which it is computed."""

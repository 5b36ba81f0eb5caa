"""Spec strings: how they are parsed, built and written; the catalogue."""

"""Configs of runs: fields, defaults, overrides, checks."""

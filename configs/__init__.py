"""Runs, as ml_collections configs; `default` has every field."""

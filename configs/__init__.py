"""Runs, as ml_collections configs; `default` holds every field."""

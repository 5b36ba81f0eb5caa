"""Training: optimizer, step, metrics and loop."""

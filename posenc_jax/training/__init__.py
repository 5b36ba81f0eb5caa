"""Training: optimizer, step, metrics and loop. An encoding can be used without this package."""

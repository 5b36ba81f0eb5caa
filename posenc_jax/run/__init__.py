"""A training run: its config, the plan that the config resolves to, and the files that are kept."""

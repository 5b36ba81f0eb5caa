"""The programs for training, evaluation and the claims, and all commands that pip installs."""

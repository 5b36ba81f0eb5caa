"""What a trained model does with its positions: functions of a model and a text, each with its pictures or tables."""

from posenc_jax.analysis import rope_usage, token_distance

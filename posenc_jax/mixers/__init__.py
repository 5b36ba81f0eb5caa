"""Attention replacements that carry position themselves."""

from posenc_jax.mixers import kernelized_rpe, number_network, positional_attention

"""Attention replacements that carry position themselves."""

from posenc_jax.mixers import encoder_decoder, gru, kernelized_rpe, monotonic_location, number_network
from posenc_jax.mixers import positional_attention

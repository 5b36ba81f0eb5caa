"""Attention replacements that carry position themselves."""

from posenc_jax.mixers import (
    encoder_decoder,
    gru,
    kernelized_rpe,
    monotonic_location,
    number_network,
    positional_attention,
)

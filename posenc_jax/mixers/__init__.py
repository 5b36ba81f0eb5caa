"""Attention replacements that carry position themselves."""

from posenc_jax.mixers import encoder_decoder, gru, monotonic_location, number_network

"""Layers in place of the common attention, and the small networks with which papers study them."""

from posenc_jax.mixers import (
    encoder_decoder,
    gru,
    lavo,
    lightnet,
    monotonic_location,
    number_network,
    rmat,
)

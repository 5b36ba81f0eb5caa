"""Layers in place of the common attention, and the small networks with which papers study them."""

from posenc_jax.mixers import (
    box_pe,
    cheems,
    cmc_pe,
    encoder_decoder,
    gin,
    gmu_hybrid,
    graph_attention,
    gru,
    htr_attention,
    lavo,
    lightnet,
    lightnet_whole,
    md_tpe,
    monotonic_location,
    number_network,
    pcm_layer,
    peg_causal,
    recurrent_baselines,
    rmat,
    spatial_reduction,
)

"""Codes of the nodes and edges of a graph."""

from posenc_jax.graph import rope_reading_order

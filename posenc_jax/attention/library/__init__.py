"""Attention by JAX's own kernels, where nothing but masks acts between queries and keys."""

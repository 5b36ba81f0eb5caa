"""Attention in Pallas kernels, generic over the encoding."""

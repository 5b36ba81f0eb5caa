"""Experiments, the claims of papers, and what was measured of them."""

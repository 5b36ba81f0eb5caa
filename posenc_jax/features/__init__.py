"""Encoders of coordinates and of graphs: features for networks that read no tokens."""

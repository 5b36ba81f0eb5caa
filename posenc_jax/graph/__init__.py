"""Codes of the nodes and edges of a graph."""

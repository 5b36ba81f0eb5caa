"""Encoders of graphs, which spec strings build, and codes of the nodes and edges of a graph."""

from posenc_jax.features.graphs import (
    graphormer,
    lap_pe,
    lcp,
    pearl,
    rfp,
    rope_reading_order,
    rrwp,
    rwse,
    signnet,
)
from posenc_jax.features.graphs.encoder import (
    GraphEncoder,
    GraphNetwork,
    JoinedGraphFeatures,
    feature_scale,
    make_graph_features,
)

__all__ = [
    'GraphEncoder',
    'GraphNetwork',
    'JoinedGraphFeatures',
    'feature_scale',
    'graphormer',
    'lap_pe',
    'lcp',
    'make_graph_features',
    'pearl',
    'rfp',
    'rope_reading_order',
    'rrwp',
    'rwse',
    'signnet',
]
__dir__ = __all__.copy

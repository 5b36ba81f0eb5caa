"""Encoders of graphs, which spec strings build, and codes of the nodes and edges of a graph."""

from posenc_jax.features.graphs import lap_pe, lcp, rfp, rope_reading_order, rwse
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
    'lap_pe',
    'lcp',
    'make_graph_features',
    'rfp',
    'rope_reading_order',
    'rwse',
]
__dir__ = __all__.copy

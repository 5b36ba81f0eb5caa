"""Graphs without downloads: pairs that colour refinement cannot tell apart, random graphs, a user's
own edge lists; and batches of graphs of different sizes.
"""

from posenc_jax.lab.tasks.graphs.edge_lists import (
    EdgeList,
    read_edge_list,
    read_graphs,
    read_labels,
    read_node_classes,
)
from posenc_jax.lab.tasks.graphs.named import BLIND_PAIRS, blind_pair, relabelled
from posenc_jax.lab.tasks.graphs.padded import pad_graphs, pad_nodes
from posenc_jax.lab.tasks.graphs.random_graphs import (
    community_graph,
    community_samples,
    graph_triangles,
    node_triangles,
    random_graph,
    random_regular,
    rewired,
)
from posenc_jax.lab.tasks.graphs.tasks import (
    BlindPairs,
    Communities,
    EdgeLists,
    SkipLinks,
    Triangles,
)

"""Generation with a decode cache, and methods that edit, prune, select from or join caches."""

from posenc_jax.lab.decoding import (
    ape_parallel,
    double_sparsity,
    duo_attention,
    graph_kv,
    parallel_context_entropy,
    pie,
)

__all__ = [
    'ape_parallel',
    'double_sparsity',
    'duo_attention',
    'graph_kv',
    'parallel_context_entropy',
    'pie',
]
__dir__ = __all__.copy

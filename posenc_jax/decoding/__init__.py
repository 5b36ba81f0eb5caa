"""What a decode cache may do besides appending: edit a text, drop keys by head, read few of them,
join several.
"""

from posenc_jax.decoding import (
    ape_parallel,
    double_sparsity,
    duo_attention,
    graph_kv,
    parallel_context_entropy,
    pie,
)

"""What may be done to a filled decode cache besides appending to it, and caches that are put together from several."""

from posenc_jax.cache import ape_parallel, graph_kv, parallel_context_entropy, pie
"""What a decode cache may do besides appending to it: edit a text, drop keys by head, read few of them."""

from posenc_jax.cache import double_sparsity, duo_attention, pie

"""What may be done to a filled decode cache besides appending to it, and caches that are put together from several."""

from posenc_jax.cache import ape_parallel, graph_kv, parallel_context_entropy, pie

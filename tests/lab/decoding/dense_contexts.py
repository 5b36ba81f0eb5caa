"""What reading contexts through a cache is compared with."""

import jax.numpy as jnp
import numpy as np

from posenc_jax.lab.decoding.contexts import with_contexts
from posenc_jax.layer.sharding import sharded_attend


def dense(model, segments, query, layout, attention_fn=sharded_attend):
    """Logits [B, L, V] from one pass over prefix, contexts and query, with the positions and the
    mask of `layout`.
    """
    tokens = np.concatenate([*segments, query], axis=1)
    reader = with_contexts(model, layout.sees, attention_fn)
    return reader(jnp.asarray(tokens), layout.tokens(query.shape[1]))

"""Positional encodings for JAX, as values that plug into one attention.

Where to begin, after `import posenc_jax as pj` and `from flax import nnx`:

    pj.catalog()                                          all methods; catalog('rope') shows one
    pj.Attention('rope()', 64, 4, rngs=nnx.Rngs(0))       a layer of width 64 with 4 heads
    pj.make('rope() | alibi()', heads=4, head_dim=16)     an encoding, for your own attention
    pj.extend(encoding, 'yarn(factor=4)', train_len=512)  the encoding for longer texts
    pj.cite('rope()')                                     its BibTeX

`posenc_jax.functional` has the encodings as pure functions, and `posenc_jax.lab.model` a
transformer.
"""

import posenc_jax.base.starting  # noqa: F401
from posenc_jax import fields, functional, linen, mixers, testing
from posenc_jax import methods as collect
from posenc_jax import methods as embedding
from posenc_jax import methods as extension
from posenc_jax import methods as logits
from posenc_jax import methods as mask
from posenc_jax import methods as positions
from posenc_jax import methods as rotation
from posenc_jax.attention.attend import attend
from posenc_jax.features import coordinates
from posenc_jax.features import graphs as graph
from posenc_jax.lab import analyse as analysis
from posenc_jax.lab import conversion, decoding, model
from posenc_jax.language.catalog import catalog, cite
from posenc_jax.language.make import make
from posenc_jax.layer.attention import Attention, attention_layer
from posenc_jax.methods.extend import extend
from posenc_jax.methods.per_head import PerHead
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import TOKEN_STAGE, Constant, Encoding
from posenc_jax.protocol.registry import Card, Promises, SpecError, register
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.version import __version__

__all__ = [
    'Attention',
    'Card',
    'Constant',
    'Encoding',
    'PerHead',
    'Promises',
    'SpecError',
    'TOKEN_STAGE',
    'Tokens',
    'analysis',
    'attend',
    'attention_layer',
    'catalog',
    'chain',
    'cite',
    'collect',
    'conversion',
    'coordinates',
    'decoding',
    'embedding',
    'extend',
    'extension',
    'fields',
    'functional',
    'graph',
    'linen',
    'logits',
    'make',
    'mask',
    'mixers',
    'model',
    'positions',
    'register',
    'rotation',
    'testing',
    '__version__',
]
__dir__ = __all__.copy


def __getattr__(name: str):
    from posenc_jax.protocol.attributes import missing

    raise missing(__name__, name, __all__)

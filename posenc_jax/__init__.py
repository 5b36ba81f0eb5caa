"""Positional encodings for JAX, as values that plug into one attention.

Where to begin, after `import posenc_jax as pj` and `from flax import nnx`:

    pj.catalog()                                          all methods; catalog('rope') shows one
    pj.Attention('rope()', 64, 4, rngs=nnx.Rngs(0))       a layer of width 64 with 4 heads
    pj.make('rope() | alibi()', heads=4, head_dim=16)     an encoding, for your own attention
    pj.extend(encoding, 'yarn(factor=4)', train_len=512)  the encoding for longer texts
    pj.choose(factor=8)                                   what to try first, by measured claims
    pj.cite('rope()')                                     its BibTeX

Methods of your own inherit from `Bias`, `Mask`, `Embedding`, `Rotary`, `FrequencyRule`, `Wrapper`,
`RecurrentMixer` or `Encoding`, and `testing.check` checks them.

`posenc_jax.functional` has the encodings as pure functions, and `posenc_jax.lab` a transformer, its
training and its evaluation.
"""

import importlib
from typing import TYPE_CHECKING

import posenc_jax.base.starting  # noqa: F401
from posenc_jax import moved
from posenc_jax.attention.attend import attend
from posenc_jax.language.make import make
from posenc_jax.layer.attention import Attention, attention_layer
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import TOKEN_STAGE, Constant, Encoding
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.lazy import missing
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

if TYPE_CHECKING:
    from posenc_jax import features, fields, functional, linen, methods, mixers, testing
    from posenc_jax.language.catalog import catalog, cite
    from posenc_jax.language.choosing import choose
    from posenc_jax.layer.recurrent_mixer import RecurrentMixer
    from posenc_jax.methods.extend import extend
    from posenc_jax.methods.frequency_rule import FrequencyRule
    from posenc_jax.methods.per_head import PerHead
    from posenc_jax.methods.rope import Rotary
    from posenc_jax.protocol.bounds import CONTEXT, Positive, Size
    from posenc_jax.protocol.composite import Wrapper
    from posenc_jax.protocol.families import Bias, Embedding, Mask, signed_distance

__version__ = '0.2.0'

# What is imported when somebody reads it: packages, and names of modules.
_PACKAGES = 'features', 'fields', 'functional', 'linen', 'methods', 'mixers', 'testing'
_NAMES = {
    **dict.fromkeys(('Bias', 'Embedding', 'Mask', 'signed_distance'), 'protocol.families'),
    **dict.fromkeys(('CONTEXT', 'Positive', 'Size'), 'protocol.bounds'),
    'FrequencyRule': 'methods.frequency_rule',
    'RecurrentMixer': 'layer.recurrent_mixer',
    'Rotary': 'methods.rope',
    'Wrapper': 'protocol.composite',
    'catalog': 'language.catalog',
    'choose': 'language.choosing',
    'cite': 'language.catalog',
    'extend': 'methods.extend',
    'PerHead': 'methods.per_head',
}


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(f'posenc_jax.{_NAMES[name]}'), name)
    if (there := moved.place(f'posenc_jax.{name}')) is not None:
        raise ImportError(f'posenc_jax.{name} has moved to {there}')
    if name in _PACKAGES:
        return importlib.import_module(f'posenc_jax.{name}')
    raise missing(__name__, name, __all__)


__all__ = [
    'Attention',
    'Bias',
    'CONTEXT',
    'Card',
    'Constant',
    'Embedding',
    'Encoding',
    'FrequencyRule',
    'Mask',
    'PerHead',
    'Positive',
    'Promises',
    'RecurrentMixer',
    'Rotary',
    'Size',
    'SpecError',
    'TOKEN_STAGE',
    'Tokens',
    'Wrapper',
    'attend',
    'attention_layer',
    'catalog',
    'chain',
    'choose',
    'cite',
    'extend',
    'features',
    'fields',
    'functional',
    'linen',
    'make',
    'methods',
    'mixers',
    'register',
    'signed_distance',
    'testing',
    '__version__',
]
__dir__ = __all__.copy

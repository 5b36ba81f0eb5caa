"""Layers in place of the common attention, and the small networks with which papers study them. A
file is imported when a spec string, or somebody, asks for it.

A constructor takes its sizes (`model_dim`, `heads`, `kv_heads`, `head_dim`, `layers`) and `rngs`,
which draws the parameters, from the model.
"""

import pathlib

from posenc_jax.protocol.lazy import names_from

_FILES = sorted(p.stem for p in pathlib.Path(__file__).parent.glob('[a-z]*.py'))
__all__, __getattr__ = names_from(__name__, __name__, dict.fromkeys(_FILES, ''))
__dir__ = __all__.copy

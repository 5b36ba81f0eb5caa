"""The laws of encodings and mixers, for tests of your own: `check('rope()')`, `check('gru()')`."""

from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import LAWS, Report, check
from posenc_jax.testing.subject import CONTEXT

__all__ = ['CONTEXT', 'LAWS', 'BrokenLaw', 'Report', 'check']
__dir__ = __all__.copy

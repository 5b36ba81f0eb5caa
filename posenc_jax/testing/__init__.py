"""The laws of encodings, for tests of encodings of one's own: `check('rope()')`."""

from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import LAWS, Report, check
from posenc_jax.testing.subject import CONTEXT

__all__ = ['CONTEXT', 'LAWS', 'BrokenLaw', 'Report', 'check']
__dir__ = __all__.copy

"""The methods for sequences: one file for a paper or a family. A file is imported when a spec
string, or somebody, asks for it.
"""

import pathlib

from posenc_jax.protocol.lazy import names_from

_FILES = sorted(p.stem for p in pathlib.Path(__file__).parent.glob('[a-z]*.py'))
__all__, __getattr__ = names_from(__name__, __name__, dict.fromkeys(_FILES, ''))
__dir__ = __all__.copy

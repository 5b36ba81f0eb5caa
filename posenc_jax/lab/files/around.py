"""Where the files around the package lie. In a checkout they are those of the repository. A package
that pip installed carries the configs and the measured claims in its folder `installed`.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).parents[1]
_CARRIED = _PACKAGE / 'installed'

IS_INSTALLED = _CARRIED.is_dir()
# The folder that holds configs/ and evidence/measured.json.
ROOT = _CARRIED if IS_INSTALLED else _PACKAGE.parent
# The folder whose docs/ is written: the repository, or runs/ of the working directory.
WRITTEN = pathlib.Path('runs') if IS_INSTALLED else ROOT

"""The folders with files around the package. In a checkout these are those of the repository. A
package that pip installed carries the configs and the notebooks in its folder `installed`.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).parents[2]
_CARRIED = _PACKAGE / 'installed'

# The folder that holds configs/ and notebooks/.
ROOT = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent
# The folder whose docs/ is written: the repository, or runs/ of the working directory.
WRITTEN = pathlib.Path('runs') if ROOT == _CARRIED else ROOT

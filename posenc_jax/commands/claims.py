"""Starts the ledger of claims, `python -m configs.claims`, from the configs of the repository or of
the installed package.
"""

import runpy
import sys

from posenc_jax.core import around


def main() -> None:
    sys.path.insert(0, str(around.ROOT))  # where `configs` is
    runpy.run_module('configs.claims', run_name='__main__')

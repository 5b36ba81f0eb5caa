"""Starts the ledger of claims, `python -m evidence.claims`, from the configs of the repository or
of the installed package.
"""

import runpy
import sys

from posenc_jax.lab.files import around


def main() -> None:
    sys.path.insert(0, str(around.ROOT))  # where `configs` is
    runpy.run_module('evidence.claims', run_name='__main__')

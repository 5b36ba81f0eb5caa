"""Trains a run; `posenc_jax.lab.cli.train` describes it. `posenc-train` is the same program."""

import sys

from posenc_jax import console

if __name__ == '__main__':
    sys.exit(console.train())

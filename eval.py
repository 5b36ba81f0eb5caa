"""Evaluates runs; `posenc_jax.lab.cli.eval` describes it. `posenc-eval` is the same program."""

import sys

from posenc_jax import console

if __name__ == '__main__':
    sys.exit(console.evaluate())

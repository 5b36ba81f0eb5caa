"""Evaluates runs; `posenc_jax.commands.eval` describes it. `posenc-eval` is the same program."""

import sys

from posenc_jax.commands import console

if __name__ == '__main__':
    sys.exit(console.evaluate())

"""Checks that encodings keep the laws of attention.

    python -m posenc_jax.testing SPEC... [--import=MODULE]

Each encoding string gets a line with the laws that hold. A broken law ends the program with the law
and the largest difference, and status 1.
"""

import sys

from posenc_jax.core.command import Parser
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import check


def main(argv: list[str]) -> int:
    parser = Parser('posenc_jax.testing', description=__doc__)
    parser.add_argument('specs', nargs='+', metavar='SPEC', help="encoding string, e.g. 'rope()'")
    parser.add_imports()
    for spec in parser.parse_args(argv).specs:
        try:
            print(check(spec), flush=True)
        except (BrokenLaw, ValueError) as error:
            print(f'posenc_jax.testing: {error}', file=sys.stderr)
            return 1 if isinstance(error, BrokenLaw) else 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

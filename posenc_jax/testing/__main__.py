"""Checks that encodings keep the laws of attention.

    python -m posenc_jax.testing SPEC... [--import=MODULE] [--laws=shapes,decoding]

Each encoding string gets a line with the laws that hold, after half a minute. A broken law ends the
program with the law and the largest difference, and status 1. In a terminal each law is named when
its check begins.
"""

import sys

from posenc_jax.lab.files import interrupts
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.files.paths import printable
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import check


def main(argv: list[str]) -> int:
    parser = Parser('posenc_jax.testing', description=__doc__)
    parser.add_argument('specs', nargs='+', metavar='SPEC', help="encoding string, e.g. 'rope()'")
    parser.add_argument(
        '--laws', type=lambda text: text.split(','), default=(), help='laws to check; default: all'
    )
    parser.add_imports()
    arguments = parser.parse_args(argv)
    for spec in arguments.specs:
        try:
            print(check(spec, laws=arguments.laws, begun=_name), flush=True)
        except (BrokenLaw, ValueError) as error:
            print(f'posenc_jax.testing: {printable(error)}', file=sys.stderr)
            return 1 if isinstance(error, BrokenLaw) else 2
    return 0


def _name(law: str) -> None:
    if sys.stderr.isatty():
        print(f'checking {law}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.testing', lambda: main(sys.argv[1:])))

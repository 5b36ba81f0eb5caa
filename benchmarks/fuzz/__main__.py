"""Gives the package random wrong input, each try in a process that is watched, and reports what is
not one clear line.

    python -m benchmarks.fuzz specs configs --tries 10000 [--seed 0] [--workers 2]
    # one try again, in this process, with the whole traceback
    python -m benchmarks.fuzz specs --only 1234

A try passes if the input is read, or is refused by an error that the programs turn into one line
and exit status 2. It fails by a crash, any other exception, a message of several lines or with
control characters, more than 10 seconds of processor time (or a minute), more than 4 GiB of memory,
or a change to a file beside the folder of the try. Every try depends on the target, the seed and
its number alone. The exit status is 1 if a try has failed.
"""

import os
import pathlib
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.fuzz.harness import fuzz, once
from posenc_jax.lab.files.command import Parser

NOT_TARGETS = ('__init__', '__main__', 'damage', 'harness', 'programs', 'target')
TARGETS = tuple(
    sorted(
        path.stem
        for path in pathlib.Path(__file__).parent.glob('*.py')
        if path.stem not in NOT_TARGETS
    )
)
SHOWN = 20  # failures of one target that are printed


def main() -> int:
    parser = Parser('benchmarks.fuzz', description=__doc__)
    parser.add_argument(
        'targets',
        nargs='*',
        choices=(*TARGETS, []),
        metavar='TARGET',
        help=f'{", ".join(TARGETS)}; all by default',
    )
    parser.add_argument('--tries', type=int, default=1000, help='of each target')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, help='processes at a time'
    )
    parser.add_argument(
        '--only', type=int, metavar='NUMBER', help='one try again, with its traceback'
    )
    arguments = parser.parse_args()
    for name in ('tries', 'workers'):
        if getattr(arguments, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(arguments, name)}')
    if arguments.only is not None and not arguments.targets:
        parser.error('--only needs a target')
    if not pathlib.Path('/proc/self/stat').exists():
        parser.error('time and memory of the tries are read from /proc, which is not here')
    if arguments.only is not None:
        for name in arguments.targets:
            once(name, arguments.seed, arguments.only)
        return 0
    table, failed = Table('target', 'tries', 'read', 'refused', 'failed', 'minutes'), False
    for name in arguments.targets or TARGETS:
        began = time.monotonic()
        outcomes, failures = fuzz(name, arguments.seed, arguments.tries, arguments.workers)
        for number, why in failures[:SHOWN]:
            print(f'{name} --seed {arguments.seed} --only {number}: {why}', flush=True)
        if len(failures) > SHOWN:
            print(f'{name}: and {len(failures) - SHOWN} more')
        counts = [outcomes[kind] for kind in ('read', 'refused', 'failed')]
        table.add_row(
            name, *map(str, (sum(counts), *counts)), f'{(time.monotonic() - began) / 60:.1f}'
        )
        if missing := arguments.tries - sum(counts):
            print(
                f'{name}: {missing} tries were not made, since a process did not get as far as one',
                flush=True,
            )
        failed |= bool(failures or missing)
    Console().print(table)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())

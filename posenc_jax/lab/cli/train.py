"""Trains a run, or continues it if it exists, and evaluates it at the end.

    python train.py --config=configs/quickstart.py [--config.encoding='alibi()']
    [--config.train.steps=1000] [--import=MODULE]

`posenc-train` is this program where pip installed the package. There posenc_jax.configs.quickstart
names the config, which configs/quickstart.py names too. `--help` lists every field of a config,
which posenc_jax/lab/config/defaults.py defines. --import=root.py imports a file that registers
encodings or tasks; the run keeps a copy of it. To train with several processes, start this program
once for each, with --coordinator=HOST:PORT --processes=N --process_id=I. Where JAX finds the
processes itself (TPU pods, Slurm, Open MPI), --coordinator=auto is enough.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from posenc_jax.base import interrupts
from posenc_jax.base.programs import WRONG_INPUT, program
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.listing import field_help, fields_named
from posenc_jax.lab.files.command import Parser, in_line, processes_of
from posenc_jax.protocol.errors import quoted, shortened

_LONGEST_FLAG = 100  # letters of an unknown flag that are shown


def stop(error: object, status: int, leave: Callable[[int], int] = int) -> NoReturn:
    """Prints an error on one line and ends the program, where `leave` has not ended it yet."""
    print(f'{program("train.py")}: {in_line(error)}', file=sys.stderr, flush=True)
    sys.exit(leave(status))


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        stop(message, WRONG_INPUT)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the arguments; `config` is then the config. Errors in them end the program with one
    message.
    """
    parser = _Parser(program('train.py'), description=__doc__, epilog=field_help())
    parser.add_argument(
        '--config',
        metavar='FILE',
        help='a Python file with get_config(), or posenc_jax.configs.NAME; --config.NAME=VALUE '
        'changes a field',
    )
    parser.add_argument(
        '--resume_changed',
        action='store_true',
        help='continue a run even if its config has changed',
    )
    parser.add_imports(of_runs=True, action='append')
    parser.add_processes()
    known, rest = parser.parse_known_args(argv)
    fields = [argument for argument in rest if re.match(r'--?config\.', argument)]
    for argument in rest:
        if argument not in fields:
            parser.error(_unknown(argument, parser))
    if not known.config:
        parser.error('give a config, e.g. --config=configs/quickstart.py')
    try:
        known.config = config_file.read(known.config, fields)
    except (ValueError, OSError) as error:
        stop(error, WRONG_INPUT)
    known.config.imports = (*known.config.imports, *vars(known)['import'])
    return known


def _unknown(argument: str, parser: Parser) -> str:
    """The message about an argument that does not exist: perhaps the last word of a field's name,
    or nearly that of a flag.
    """
    if not argument.startswith('-'):
        return f'unknown argument {quoted(argument)}'
    flag = shortened(argument.lstrip('-').partition('=')[0], _LONGEST_FLAG)
    near = '; --config.NAME=VALUE changes a field of the config'
    if fields := fields_named(flag):
        near = f'; did you mean {" or ".join(fields)}?'
    return f'unknown argument --{flag}{near if fields else parser.near(flag) or near}'


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    from posenc_jax.lab.cluster.cluster import find_cluster, leave
    from posenc_jax.lab.cluster.peers import FAILED, ClusterError
    from posenc_jax.lab.train.loop import NonFiniteError, train

    try:
        cluster = find_cluster(*processes_of(asked))
        with interrupts.announced(lambda: 'stopping; no step has been computed yet'):
            train(
                asked.config,
                cluster=cluster,
                resume_changed=asked.resume_changed,
                trust_imports=asked.trust_imports,
            )
    except (ValueError, OSError, ImportError) as error:
        stop(error, WRONG_INPUT, leave)
    except (NonFiniteError, ClusterError) as error:
        stop(error, FAILED, leave)


if __name__ == '__main__':
    sys.exit(interrupts.run('train.py', main))

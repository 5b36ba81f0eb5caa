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

import difflib
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

from posenc_jax.base import interrupts
from posenc_jax.base.programs import WRONG_INPUT, program
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.listing import field_help, fields_named
from posenc_jax.lab.files.command import in_line
from posenc_jax.protocol.errors import quoted, shortened

CONFIG = flags.DEFINE_string(
    'config',
    None,
    'a Python file with get_config(), or posenc_jax.configs.NAME; --config.NAME=VALUE changes a '
    'field',
)
COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT of process 0, or auto where JAX finds it'
)
IMPORT = flags.DEFINE_multi_string(
    'import',
    [],
    "a module that registers encodings or tasks of one's own: a dotted name or a .py file",
)
PROCESSES = flags.DEFINE_integer('processes', None, 'how many processes train together')
PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'the number of this process, 0 .. processes - 1'
)
RESUME_CHANGED = flags.DEFINE_bool(
    'resume_changed', False, 'continue a run even if its config has changed'
)
TRUST = flags.DEFINE_bool(
    'trust-imports', False, 'execute the Python files in the folder imports/ of init.source'
)
# Letters of a flag that absl looks up; it recurses once for each letter of an unknown one.
_LONGEST_FLAG = 100


def stop(error: object, status: int, leave: Callable[[int], int] = int) -> None:
    """Prints an error on one line and ends the program, where `leave` has not ended it yet."""
    print(f'{program("train.py")}: {in_line(error)}', file=sys.stderr, flush=True)
    sys.exit(leave(status))


def parse(argv: list[str]) -> list[str]:
    """Reads the flags and the config. Errors in them end the program with one message."""
    if {'-h', '-help', '--help', '-helpshort', '--helpshort'} & set(argv[1:]):
        own = flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag('config'))
        print(f'{__doc__}\nflags:\n{own}\n\n{field_help()}')
        sys.exit()
    fields = [argument for argument in argv[1:] if re.match(r'--?config\.', argument)]
    for argument in set(argv[1:]).difference(fields):
        name = argument.lstrip('-').partition('=')[0]
        if argument.startswith('-') and len(name) > _LONGEST_FLAG:
            stop(_unknown(name), WRONG_INPUT)
    try:
        rest = flags.FLAGS([argument for argument in argv if argument not in fields])
        if not CONFIG.value:
            stop('give a config, e.g. --config=configs/quickstart.py', WRONG_INPUT)
        config = config_file.read(CONFIG.value, fields)
        config.imports = (*config.imports, *IMPORT.value)
        flags.FLAGS['config'].value = config
    except flags.UnrecognizedFlagError as error:
        stop(_unknown(error.flagname), WRONG_INPUT)
    except (flags.Error, ValueError, OSError) as error:
        stop(error, WRONG_INPUT)
    return rest


def _unknown(flag: str) -> str:
    """The message about a flag that does not exist: perhaps the last word of a field's name, or
    nearly that of a flag.
    """
    flag = shortened(flag, _LONGEST_FLAG)
    own = difflib.get_close_matches(flag, list(flags.FLAGS), 1, 0.8)
    if not (near := fields_named(flag) or [f'--{name}' for name in own]):
        return f'unknown argument --{flag}; --config.NAME=VALUE changes a field of the config'
    return f'unknown argument --{flag}; did you mean {" or ".join(near)}?'


def run(argv: list[str]) -> None:
    """Trains, by the flags that `parse` has read."""
    from posenc_jax.lab.cluster.cluster import find_cluster, leave
    from posenc_jax.lab.cluster.peers import FAILED, ClusterError
    from posenc_jax.lab.train.loop import NonFiniteError, train

    if len(argv) > 1:
        stop(f'unknown argument {quoted(argv[1])}', WRONG_INPUT)
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    try:
        cluster = find_cluster(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
        with interrupts.announced(lambda: 'stopping; no step has been computed yet'):
            train(
                CONFIG.value,
                cluster=cluster,
                resume_changed=RESUME_CHANGED.value,
                trust_imports=TRUST.value,
            )
    except (ValueError, OSError, ImportError) as error:
        stop(error, WRONG_INPUT, leave)
    except (NonFiniteError, ClusterError) as error:
        stop(error, FAILED, leave)


def main() -> None:
    app.run(run, flags_parser=parse)


if __name__ == '__main__':
    sys.exit(interrupts.run('train.py', main))

"""Configs: fields of the command lines of train.py and eval.py with values of right and wrong
types, and damaged config files.

What is read is validated; a third of what is valid is built, and one training step is traced on
shapes.
"""

import dataclasses
import pathlib
import random

import jax
import numpy as np

from benchmarks.fuzz import specs
from benchmarks.fuzz.target import Target
from posenc_jax.lab.config import config_file, defaults
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.config.overrides import apply_overrides, read_overrides
from posenc_jax.lab.runs.run import Run, validate
from posenc_jax.lab.runs.sizes import make_task, task_length
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.layers import BIASES, MLPS, NORM_PLACES, NORMS
from posenc_jax.layer.projections import QK_NORMS
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.registry import entries

FILE = """from posenc_jax.lab.config import defaults


def get_config():
    config = defaults.get_config().unlock()
    config.task, config.encoding = 'copy(symbols=3)', 'rope()'
    config.data.dataset, config.data.data_dir = 'text:*.txt', {folder!r}
    config.model.layers, config.model.width, config.model.heads = 2, 16, 2
    config.train.steps, config.train.batch, config.train.length, config.train.warmup = 20, 8, 12, 4
    config.eval.at_end, config.eval.tokens, config.eval.stride = False, 64, 4
    config.eval.lengths = (12, 16)
    return config
"""
CHOICES = {
    'share': ('auto', 'model', 'layer'),
    'data.dataset': ('text:*.txt', 'text:1*.txt'),
    'data.data_dir': (),
    'data.packing': ('stream', 'documents'),
    'init.source': (),
    'model.kind': ('decoder', 'decoder', 'encoder'),
    'model.mlp': MLPS,
    'model.bias': BIASES,
    'model.norm': NORMS,
    'model.norm_place': NORM_PLACES,
    'model.qk_norm': QK_NORMS,
    'model.head_norm': (False, True),
    'model.dtype': ('float32', 'bfloat16'),
    'model.precision': ('', 'default', 'high', 'highest'),
    'model.remat': ('none', 'full', 'dots'),
    'model.implementation': ('', 'dense', 'blocked'),
    'train.tune': ('all', 'adapters', 'encodings'),
    'eval.protocols': (
        'sliding',
        'nonoverlapping,same_tokens',
        'per_position',
        'sliding,sliding',
        '',
    ),
    'eval.split': ('validation', 'test', 'train'),
    'eval.positions': ('first', 'sampled'),
    'eval.lengths': ('12', '8,16', '(24,)', '16,16', ''),
    'eval.depths': ('', '0,0.5', '1'),
    'name': ('', 'a', 'a.b', 'ä b'),
    'workdir': ('runs', '.', '/tmp/x'),
}
RIGHT = {
    bool: ('True', 'False', 'true'),
    int: ('0', '1', '2', '3', '4', '8', '16', '24', '32', '-1', '48'),
    float: ('0', '0.0', '0.1', '0.5', '1', '1e-3', '2.5', '100.0'),
    str: ('', 'x'),
    tuple: ('', '1', '1,2'),
}
WRONG = ('', ' ', '0', '-1', '1e400', '-1e400', 'nan', 'inf', '1e9', '1000000', '1000000000',
    '2147483647', '2147483648', '-2147483649', '4294967296', '9' * 30,
         '9' * 5000, '0x' + 'f' * 5000, '10**9', 'y' * 100, 'yes', 'None', 'é😀', 'a\nb', 'a\0b',
         '..', '/', 'a' * 300, '[' * 150, '(' * 5000, '()', '(1,)', '{}', "''",
         '"x', 'x,y', '1,,2', '1,True', '1e-300', '1e38', 'rope()', 'True')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Given:
    """What a program is started with: 'train' or 'eval', a config file, `--config.NAME=VALUE`
    arguments; whether a step follows.
    """

    program: str
    path: str
    arguments: tuple[str, ...]
    steps: bool


def value(rng: random.Random, name: str, usual) -> str:
    if rng.random() < 0.2:
        return rng.choice(WRONG)
    kinds = {
        'encoding': 'encoding',
        'task': 'task',
        'extend': 'extension',
        'init.extend': 'frequencies',
        'pattern': 'encoding',
    }
    if name in kinds and rng.random() < 0.8:
        text = specs.call(rng, rng.choice(entries(kinds[name])))
        if name == 'pattern':
            text = ','.join(
                [text, *rng.choices(('rope()', 'nope()', 'alibi()'), k=rng.choice((0, 1, 3)))]
            )
        return specs.changed(rng, text) if rng.random() < 0.1 else text
    return rng.choice(CHOICES.get(name) or RIGHT[type(usual)])


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    fields = fields_of(defaults.get_config())
    program = rng.choice(('train', 'train', 'eval'))
    names = [
        name
        for name in fields
        if program == 'train' or name.split('.')[0] in ('eval', 'data', 'extend', 'task')
    ]
    path, arguments = str(good / 'config.py'), []
    for name in rng.sample(names, rng.choice((1, 1, 2, 3, 4))):
        if rng.random() < 0.03:
            name = rng.choice((specs.changed(rng, name), name.split('.')[0], name + '.x', ''))
        arguments.append(f'--config.{name}={value(rng, name, fields.get(name, ""))}')
    if rng.random() < 0.03:
        arguments.append(
            rng.choice(
                (
                    '--config.train.steps',
                    '--config',
                    'x',
                    '--config.train.steps 5',
                    '--nosuch=1',
                    '',
                    '-config.seed=3',
                )
            )
        )
    if rng.random() < 0.2:
        path, arguments = str(own / 'config.py'), arguments[:1]
        text = damaged(rng, (good / 'config.py').read_text())
        pathlib.Path(path).write_text(text, encoding='utf-8', errors='surrogateescape')
    elif rng.random() < 0.02:
        path = rng.choice(
            (
                str(good),
                '/etc/passwd',
                path + ':x',
                '',
                path + '\0',
                str(own / 'none.py'),
                'é',
                '/',
                '.',
            )
        )
    return Given(program, path, tuple(arguments), rng.random() < 0.33)


def damaged(rng: random.Random, text: str) -> str:
    """A config file with another value, without a line, with a line that raises, cut, or with
    random edits.
    """
    lines = text.splitlines()
    body = lines.index('def get_config():') + 1
    wrong = [
        'raise RuntimeError("a\\nb")',
        'return 5',
        'return None',
        'import sys; sys.exit(3)',
        'del config.train',
        'config.model.x = 1',
        'config.train = 3',
        'return defaults',
        '1 / 0',
        'config.model.width = "x"',
        'config.pattern = (1, 2)',
        'config.pattern = ("rope()",) * 5000',
        'config.eval.lengths = (1.5,)',
        'config.seed = 10**5000',
        'config.train.lr = float("nan")',
        'config.name = "a\\0b"',
        'config.encoding = "rope()\\n"',
        'config.eval.depths = (10**400,)',
        'config.eval.protocols = (3,)',
        'config.eval.lengths = ("x" * 9999,)',
        'config.data = None',
        'config.mesh.data = True',
        'return dict(config)',
        'raise Exception',
        'raise StopIteration',
        'config.model.lock()',
        'config.task = None',
        'return get_config()',
        'config.eval.lengths = ((1,),)',
    ]
    match rng.randrange(5):
        case 0 | 1:
            lines.insert(rng.randrange(body + 1, len(lines)), '    ' + rng.choice(wrong))
        case 2:
            del lines[rng.randrange(len(lines))]
        case 3:
            lines = text[: rng.randrange(len(text))].splitlines()
        case 4:
            return specs.changed(rng, text)
    return '\n'.join(lines) + '\n'


def prepare(folder: pathlib.Path) -> None:
    specs.prepare(folder)
    (folder / 'config.py').write_text(FILE.format(folder=str(folder)))


def read(given: Given) -> None:
    if given.program == 'eval':
        config = config_file.read(given.path)
        cfg = Run.of(config).cfg
        config = apply_overrides(config, read_overrides(given.arguments))
        Run(pathlib.Path(), config, make_task(config), cfg).check_evaluation()
        return
    config = validate(config_file.read(given.path, given.arguments))
    if given.steps and config.train.length <= 4 * (
        config.train.segment or config.train.length
    ):  # each segment is traced
        trace_step(config)


def trace_step(config) -> None:
    """One training step on shapes, and a validation."""
    task = make_task(config)
    mesh = make_mesh(**{name: config.mesh[name] for name in ('data', 'fsdp', 'tensor', 'sequence')})
    trainer = make_trainer(Run.of(config), mesh)
    batch = task.sample(batch_rng(0, 'train', 0), 2, task_length(config, task))
    rows = {
        name: jax.ShapeDtypeStruct((config.train.batch, *np.shape(a)[1:]), a.dtype)
        for name, a in batch.items()
    }
    with jax.set_mesh(mesh):
        jax.eval_shape(trainer.step, trainer.abstract, rows)
        jax.eval_shape(trainer.evaluate, trainer.abstract, rows)


TARGET = Target(make=make, read=read, prepare=prepare)

"""Spec strings of encodings, frequency rules, extensions and tasks: written by their signatures,
and examples of Cards, changed.

About half of them are meant to be right. What is built is used as well: an encoding by attention on
shapes, a task by a sample.
"""

import dataclasses
import inspect
import pathlib
import random
import re
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from benchmarks.fuzz.target import Target
from posenc_jax.base.memory import bytes_of
from posenc_jax.lab.config import defaults, settings
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.extend import extend
from posenc_jax.protocol import capabilities
from posenc_jax.protocol.registry import Entry, entries

LENGTH = 16
DRAWN = 2**27
SIZES = dict(heads=2, kv_heads=2, head_dim=8, model_dim=16, train_len=LENGTH)
RIGHT = {
    bool: ('True', 'False'),
    int: ('1', '2', '3', '4', '6', '8', '12', '16', '32', '64', '0'),
    float: ('0.5', '1.0', '2.0', '4', '8.0', '0.1', '0.0', '10000.0', '1'),
    str: ("'rope'", "'x'", "'type2'", "'loc'", "''"),
}
WRONG = ('0', '-1', '1', '2', '0.5', '1e9', '65536', '1048576', '16777216', '2147483647',
    '2147483648', '1000000000000', '-2147483648', '-1e300',
         '1e309', '1e38', '1e-300', '0x10', '0x' + 'f' * 3000, '""', '"x\\ny"',
         '"' + 'a' * 500 + '"', 'None', 'True', '()', '(1,)', '[]', '"x"', 'rope()',
         '(((1,),),)', '(' * 150 + ')' * 150)  # fmt: skip
EXTENDED = (
    'rope()',
    'rope() | window(size=8)',
    'alibi()',
    "rope(layout='interleaved')",
    'learned_absolute(max_len=16)',
)
FITTING = {
    'alibi_pi': 'alibi()',
    'segmented_sequences': 'learned_absolute(max_len=16)',
    'nope_temperature': 'nope()',
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A string of some kind, what an extension is applied to, and where the text of tasks lies."""

    kind: str
    text: str
    extends: str = ''
    folder: str = ''


def value(rng: random.Random, hint: Any, depth: int) -> str:
    """What an annotation asks for, or once in a while something else."""
    if rng.random() < 0.04:
        return rng.choice(WRONG)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = rng.choice(typing.get_args(hint))
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return repr(rng.choice(arguments))
    if typing.get_origin(hint) is tuple:
        inner = (
            [arguments[0]] * rng.choice((0, 1, 2, 4, 4)) if arguments[1:] == (...,) else arguments
        )
        return '(' + ''.join(value(rng, one, depth) + ', ' for one in inner) + ')'
    kind = getattr(hint, 'spec_kind', None)
    if kind is not None:
        if kind == 'encoding' and rng.random() < 0.6:
            return rng.choice(EXTENDED[:2])
        return (
            call(rng, rng.choice([entry for entry in entries(kind)]), depth + 1)
            if depth < 3
            else 'nope()'
        )
    return rng.choice(RIGHT[hint]) if hint in RIGHT else 'None'


def call(rng: random.Random, entry: Entry, depth: int = 0) -> str:
    """A call of an entry: its example, or arguments by its signature."""
    if entry.card and rng.random() < 0.3:
        return (
            entry.card.example.split(' | ')[0] if entry.kind == 'encoding' else entry.card.example
        )
    target = entry.build.__init__ if inspect.isclass(entry.build) else entry.build
    hints, given = typing.get_type_hints(target), []
    for name, parameter in entry.parameters.items():
        needed = parameter.default is parameter.empty
        wrapped = name == 'encoding' and entry.kind == 'encoding' and rng.random() < 0.9
        if name == 'rngs' or (parameter.default is CONTEXT and not wrapped and rng.random() > 0.03):
            continue
        if needed or wrapped or rng.random() < 0.4:
            given.append(f'{name}={value(rng, hints.get(name), depth)}')
    return f'{entry.key}({", ".join(given)})'


def changed(rng: random.Random, text: str) -> str:
    """A text with a few random edits: letters dropped, doubled and swapped, values replaced, parts
    repeated.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, other = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        match rng.randrange(7):
            case 0:
                text = text[:at] + text[at + 1 :]
            case 1:
                text = (
                    text[:at]
                    + rng.choice('()[]{},|="\'\\.*-+ \n\0é😀0123456789abcdefxyz_')
                    + text[at:]
                )
            case 2 | 3 | 4:
                text = replaced(rng, text)
            case 5:
                text = text[: min(at, other)] + text[max(at, other) :]
            case 6:
                text = (
                    text[:at]
                    + text[min(at, other) : max(at, other)] * rng.choice((1, 1, 1, 100))
                    + text[at:]
                )
    return text


def replaced(rng: random.Random, text: str) -> str:
    """A text in which one value of an argument is another."""
    values = list(re.finditer(r'(?<=[=(,])\s*[\w.]+(?=[,)])', text))
    if not values:
        return text + ' | ' + text
    found = rng.choice(values)
    return text[: found.start()] + rng.choice(WRONG) + text[found.end() :]


def prepare(folder: pathlib.Path) -> None:
    rng = random.Random(0)
    words = [
        'position',
        'token',
        'the',
        'of',
        'attends',
        'to',
        'a',
        'key.',
        'Query',
        '\n',
        '\n\n',
        'def f(x):\n    return x\n',
    ]
    for number in range(24):
        (folder / f'{number}.txt').write_text(' '.join(rng.choices(words, k=300)))


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Spec:
    kind = rng.choice(('encoding', 'encoding', 'encoding', 'frequencies', 'extension', 'task'))
    entry = rng.choice(entries(kind))
    text = call(rng, entry)
    extends = FITTING.get(entry.key, 'rope()') if rng.random() < 0.8 else rng.choice(EXTENDED)
    if kind == 'encoding':
        text = ' | '.join(
            [
                text,
                *(call(rng, rng.choice(entries(kind))) for _ in range(rng.choice((0, 0, 0, 1, 2)))),
            ]
        )
    if kind == 'frequencies':
        kind, text = (
            ('extension', text) if rng.random() < 0.5 else ('encoding', f'rope(freqs={text})')
        )
    if rng.random() < 0.3:
        text = changed(rng, text)
    return Spec(kind, text, extends if kind == 'extension' else '', str(good))


def build(spec: Spec) -> pj.Encoding:
    if spec.kind == 'encoding':
        return pj.make(spec.text, causal=True, **SIZES)
    return extend(pj.make(spec.extends, causal=True, **SIZES), spec.text, **SIZES)


def read(spec: Spec) -> None:
    """Builds and uses what the string says. Parameters of more than `DRAWN` bytes are right, but
    are not drawn: encodings that hold them are built and used on shapes.
    """
    if spec.kind == 'task':
        use_task(spec)
        return
    shapes = nnx.state(nnx.eval_shape(lambda: build(spec)))
    if bytes_of(shapes) <= DRAWN:
        encoding = build(spec)
        # Otherwise what is still computed would be counted as time of a later try.
        jax.block_until_ready(nnx.state(encoding))
        use = lambda key: attended(encoding, key)
    else:
        use = lambda key: attended(build(spec), key)
    for key in (None, jax.random.key(0)):
        jax.eval_shape(use, key)


def attended(encoding: pj.Encoding, key) -> jax.Array:
    """Attention of `LENGTH` tokens, through all doors that do not need a model."""
    rows, heads = SIZES['model_dim'], SIZES['heads']
    tok = pj.Tokens.of(
        length=LENGTH,
        ids=np.zeros((1, LENGTH), np.int32) if 'reads_ids' in encoding.traits else None,
    )
    tok = dataclasses.replace(encoding.place(tok, key=key), ids=None)
    x = encoding.embed(jnp.ones((1, LENGTH, rows)), tok)
    before = jnp.pad(x, ((0, 0), (encoding.lookback, 0), (0, 0)))
    linear = lambda x: (x.reshape(1, -1, heads, rows // heads),) * 3
    projected = capabilities.qkv(encoding, x, before, linear, tok)
    q, k, v, tq, tk = encoding.project(*projected, tok, tok, before)
    out = pj.attend(encoding, q, k, v, tq, tk, applied=pj.TOKEN_STAGE)
    return capabilities.merge(encoding, out)


def use_task(spec: Spec) -> None:
    config = defaults.get_config().unlock()
    config.task, config.data.dataset, config.data.data_dir = spec.text, 'text:*.txt', spec.folder
    task = make_task(config)
    for length in (LENGTH, 3):
        settings.width_of(task, length)
        batch = task.sample(batch_rng(0, 'train', 0), 2, length)
        if 'tokens' in batch:
            assert int(batch['tokens'].max()) < task.vocab_size, (
                'a token id is not below the size of the vocabulary'
            )
            task.decode(batch['tokens'][0])
        for name in ('vectors', 'image', 'coords'):
            assert np.isfinite(batch.get(name, 0)).all(), f'{name} are not finite'


TARGET = Target(make=make, read=read, prepare=prepare)

"""Experiments that are programs of their own: with small sizes, each writes what its claims read,
keeps what it has measured, and is refused with other settings.
"""

import importlib
import math
import shlex
import types
from typing import Any, NamedTuple

import pytest
from flax import nnx

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import (
    coins,
    images_apart,
    node_distances,
    public_model,
    rna,
    small_tasks,
    streams,
    trees,
)
from posenc_jax.lab.model import Transformer, TransformerConfig

PUBLIC = '--file drawn --seeds 0 --texts 2 '
ALIGNED = ('content, sinusoid', 'location, none')  # one of each kind, with and without positions


def drawn(file, dtype='float32'):
    """In the place of a public checkpoint: a drawn model, and the bytes of a text as its ids."""
    assert file == 'drawn'
    sizes = dict(train_len=64, layers=3, width=32, heads=2, encoding='rope()', dtype=dtype)
    model = Transformer(TransformerConfig(vocab_size=128, **sizes), rngs=nnx.Rngs(0))
    encode = lambda text: types.SimpleNamespace(ids=[min(byte, 127) for byte in text.encode()])
    tokenizer = types.SimpleNamespace(encode=encode, decode=lambda ids: ''.join(map(chr, ids)))
    return types.SimpleNamespace(model=model, tokenizer=tokenizer)


class Small(NamedTuple):
    """Sizes with which a program takes seconds.

    Attributes:
      words: of its command line.
      patches: name in the module -> its value here.
      places: place x here, or (panel, x) -> the place in the claims.
      like: variant that is not run here -> the variant whose numbers the claims read for it.
      claims: whether the claims can be read in spite of the sizes.
    """

    words: str
    patches: dict[str, Any] = {}
    places: dict[Any, float] = {}
    like: dict[str, str] = {}
    claims: bool = True


PROGRAMS = {
    'clouds': Small('--seeds 0 --steps 2', {'TESTED': 40}),
    'coins': Small(
        '--seeds 0 --steps 3 --encodings nope rope',
        {'COINS': 8},
        like={'learned': 'rope', 'alibi': 'rope'},
    ),
    'communities': Small('--seeds 0 --steps 2', {'POOL': 64, 'TESTED': 16, 'DRAWS': 1}),
    'constructions': Small('--seeds 0 1', {'TEXT': 80, 'FRAMES': 20}),
    'field_fits': Small(
        '--seeds 0 --steps 4', {'SIDE': 8, 'POINTS': 64, 'PICTURE': 28, 'PATCH': 8}
    ),
    'images_apart': Small('--seeds 0 --steps 2 --variants "index and shift"', claims=False),
    'node_distances': Small('--seeds 0 --steps 2', {'POOL': 64, 'TESTED': 16}),
    'positional_depth': Small(
        '--seeds 0 1 --steps 2 --tasks sort --variants "positional, 2 layers" "standard, 2 layers"',
        claims=False,
    ),
    'public_caches': Small(
        f'{PUBLIC} --length 32 --edited 4 --following 6 --pieces 3 --contexts 2 --context 40 '
        '--questions 2',
        {'NOUNS': ('river', 'tower', 'mouse'), 'TUNED_ON': 1},
    ),
    'public_drope': Small(
        '--file drawn --seeds 0 --texts 2 --steps 2 --length 8 --batch 2',
        {'LOCAL': 2},
        places={8.0: 256.0, 32.0: 1024.0},
    ),
    'public_model': Small(
        f'{PUBLIC} --length 8 --doublings 3 --probes 1', places={('collapse', 8.0): 512.0}
    ),
    'rna': Small('--seeds 0 --steps 2 --encodings learned_absolute', claims=False),
    'shared_codes': Small('--seeds 0 --steps 2', {'PICTURES': 2, 'SIDE': 16, 'POINTS': 8}),
    'small_tasks': Small(
        '--seeds 0 --steps 8',
        {
            'FORMS': 130,
            'GROUPS': {**small_tasks.GROUPS, 'alignment': (small_tasks.alignment, ALIGNED, 8)},
        },
        like={'content, none': ALIGNED[0], 'location, sinusoid': ALIGNED[1]},
    ),
    'streams': Small(
        '--seeds 0 --steps 2 --tuned 2',
        {'WAYS': {way: streams.WAYS[way] for way in ('whole', 'interleaved')}},
        claims=False,
    ),
    'timings': Small(
        '--seeds 0 1 --rounds 2 --window 16 --tokens 64 --length 512 --context 8',
        {
            'MODEL': dict(vocab_size=256, layers=1, width=32, heads=4),
            'DECODED': dict(
                vocab_size=256, train_len=1024, layers=1, width=64, heads=2, encoding='rope()'
            ),
        },
        places={512.0: 32768.0, 16.0: 128.0, 8.0: 256.0},
    ),
    'trees': Small('--seeds 0 --steps 2', {'POOL': 64, 'TESTED': 8}),
    'tulip_limit': Small('--seeds 0 --steps 2 --distilled 2', claims=False),
}
MODULES = {name: importlib.import_module(f'evidence.experiments.{name}') for name in PROGRAMS}
GROUPED = (  # claims read one group each
    'constructions', 'field_fits', 'public_caches', 'public_model', 'small_tasks', 'timings',
    'trees',
)  # fmt: skip
CASES = [
    (name, group)
    for name, module in MODULES.items()
    for group in (module.GROUPS if name in GROUPED else [''])
]


@pytest.mark.full
@pytest.mark.parametrize('name, group', CASES)
def test_a_program_writes_what_its_claims_read(name, group, tmp_path, monkeypatch, capsys):
    program, small = MODULES[name], PROGRAMS[name]
    monkeypatch.setattr(public_model, 'load_pretrained', drawn)
    for attribute, value in small.patches.items():
        monkeypatch.setattr(program, attribute, value)
    words, chosen = shlex.split(small.words), ('--groups', group) if group else ()
    call = lambda *more: program.PROGRAM.main([*chosen, *words, *more, '--workdir', str(tmp_path)])
    call()
    found, seeds = ResultRows(tmp_path), set(program.PROGRAM.parser().parse_args(words).seeds)
    assert {row['seed'] for row in found.rows} == seeds
    assert all(math.isfinite(row['value']) for row in found.rows)
    for row in found.rows:
        place = row['x']
        row['x'] = small.places.get((row['panel'], place), small.places.get(place, place))
    found.rows += [
        {**row, 'name': other}
        for other, own in small.like.items()
        for row in found.rows
        if row['name'] == own
    ]
    asked = (name, chosen)
    own = [c.how for c in CLAIMS.values() if c.how and (c.how.sweep, c.how.arguments) == asked]
    assert own or not small.claims
    for how in own if small.claims else ():
        effects = how.effects(found)
        assert effects.keys() == seeds and all(map(math.isfinite, effects.values()))
    kept = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.glob('*.json')}
    before = kept()
    assert bool(before) == (name != 'timings')  # times are measured together, and not kept
    if before:
        call()
        assert kept() == before
    if '--steps' in words:
        with pytest.raises(SystemExit):
            call('--steps', '9')
        assert 'made with other settings' in capsys.readouterr().err


ENCODINGS = [  # of all variants, those that are not run above among them
    *(('decoder', spec) for spec in (*coins.ENCODINGS.values(), *streams.WAYS.values())),
    *(('encoder', spec) for spec in rna.ENCODINGS.values()),
    *(('encoder', spec) for spec in trees.ENCODINGS.values()),
    *(('encoder', spec) for _, spec in node_distances.ENCODINGS.values()),
    *(
        (
            'encoder',
            f'image_shift(sizes={images_apart.SIZES}{own}) | learnable_fourier(components=2)',
        )
        for own in images_apart.VARIANTS.values()
    ),
]


@pytest.mark.full_but_one
@pytest.mark.parametrize('kind, spec', dict.fromkeys(ENCODINGS))
def test_the_encodings_of_all_variants_can_be_made(kind, spec):
    sizes = dict(vocab_size=4, train_len=64, layers=1, width=64, heads=4, kind=kind)
    cfg = TransformerConfig(**sizes, encoding=spec)
    nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))

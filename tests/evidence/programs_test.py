"""Experiments that are programs of their own: with small sizes, each writes what its claims read,
keeps what it has measured, and is refused with other settings.
"""

import importlib
import math
import types
from typing import Any, NamedTuple

import pytest
from flax import nnx

from evidence.claims import CLAIMS
from evidence.claims.results import Results
from evidence.experiments import public_model
from posenc_jax.lab.model import Transformer, TransformerConfig

PUBLIC = '--file drawn --seeds 0 1 --texts 2 '


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
      claims: whether the claims can be read in spite of the sizes.
    """

    words: str
    patches: dict[str, Any] = {}
    places: dict[Any, float] = {}
    claims: bool = True


PROGRAMS = {
    'coins': Small('--seeds 0 --steps 3', {'COINS': 8}),
    'images_apart': Small('--seeds 0 --steps 2', claims=False),
    'positional_depth': Small('--seeds 0 --steps 2 --tasks sort', claims=False),
    'public_caches': Small(
        f'{PUBLIC} --length 32 --edited 4 --following 6 --pieces 3 --contexts 2 --context 40 '
        '--questions 2',
        {'NOUNS': ('river', 'tower', 'mouse')},
    ),
    'public_model': Small(
        f'{PUBLIC} --length 8 --doublings 3 --probes 1', places={('collapse', 8.0): 512.0}
    ),
    'rna': Small('--seeds 0 --steps 2', claims=False),
    'small_tasks': Small('--seeds 0 --steps 8', {'FORMS': 130}),
    'streams': Small('--seeds 0 --steps 2 --tuned 2', claims=False),
    'timings': Small(
        '--seeds 0 1 --rounds 2 --window 16 --tokens 64 --length 512 --context 8',
        places={512.0: 32768.0, 16.0: 128.0, 8.0: 256.0},
    ),
    'tulip_limit': Small('--seeds 0 --steps 2 --distilled 2', claims=False),
}
MODULES = {name: importlib.import_module(f'evidence.experiments.{name}') for name in PROGRAMS}
CASES = [
    (name, group)
    for name, module in MODULES.items()
    for group in (list(getattr(module, 'GROUPS', [])) if name != 'streams' else []) or ['']
]


@pytest.mark.full
@pytest.mark.parametrize('name, group', CASES)
def test_a_program_writes_what_its_claims_read(name, group, tmp_path, monkeypatch, capsys):
    program, small = MODULES[name], PROGRAMS[name]
    monkeypatch.setattr(public_model, 'load_pretrained', drawn)
    for attribute, value in small.patches.items():
        monkeypatch.setattr(program, attribute, value)
    chosen = ('--groups', group) if group else ()
    call = lambda *more: program.PROGRAM.main(
        [*chosen, *small.words.split(), *more, '--workdir', str(tmp_path)]
    )
    call()
    seeds = {int(word) for word in small.words.split('--seeds ')[1].split(' --')[0].split()}
    found = Results(tmp_path)
    assert found.rows and all(math.isfinite(row['value']) for row in found.rows)
    for row in found.rows:
        place = row['x']
        row['x'] = small.places.get((row['panel'], place), small.places.get(place, place))
    asked = (name, chosen)
    own = [c.how for c in CLAIMS.values() if c.how and (c.how.sweep, c.how.arguments) == asked]
    assert own or not small.claims
    for how in own if small.claims else ():
        effects = how.effects(found)
        assert effects.keys() == seeds and all(map(math.isfinite, effects.values()))
    kept = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.glob('*.json')}
    if before := kept():  # what was measured is kept
        call()
        assert kept() == before
        if '--steps' in small.words:
            with pytest.raises(SystemExit):
                call('--steps', '9')
            assert 'made with other settings' in capsys.readouterr().err

"""`benchmarks/accelerator.py --decide` on a CPU: kernels are interpreted and times pretended."""

import functools
import importlib
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention import decisions, policy
from posenc_jax.attention.decisions import Decision
from posenc_jax.base.targets import made_for

BENCHMARKS = pathlib.Path(__file__).parents[2] / 'benchmarks'
TILES = (8, 16), (16, 16)
KIND = 'a device'


@pytest.fixture
def decide(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv(decisions.VARIABLE, '')
    yield importlib.import_module('decide')
    for name in ('decide', 'accelerator', 'measure', 'train_step'):
        sys.modules.pop(name, None)


def sizes_of(decide, **changes):
    usual = dict(lengths=(32, 48), heads=2, width=16, dtype='float32', tiles=TILES, rounds=2)
    return decide.Sizes(**usual | changes)


def pretended(times, name, call):
    """The seconds of the first entry of `times` whose parts are all in the name; the call runs."""
    call()
    here = lambda parts: all(f' {part} ' in f' {name} ' for part in parts.split(', '))
    return next(seconds for parts, seconds in times.items() if not parts or here(parts))


TIMES = {  # pretended, and what is decided
    'none': (  # ours is the fastest
        {'kernel 16 x 16': 1.0, 'JAX': 1.2, '': 2.0},
        dict(form='kernel', block=(16, 16), library=False),
    ),
    'bias': (
        {'kernel 8 x 16': 1.0, 'kernel 16 x 16': 1.5, '': 1.8},
        dict(form='kernel', block=(8, 16)),
    ),
    'look-up': ({'kernel 8 x 16': 1.0, '': 0.9}, dict(form='blocked')),
    'carry': ({'kernel 8 x 16, both': 0.5, '': 1.0}, dict(form='blocked')),  # in one pass alone
    'products': ({'': 1.0}, dict(form='blocked')),
}


@pytest.mark.full_where(condition=lambda encodings: encodings != 'bias')
@pytest.mark.parametrize('encodings', TIMES)
def test_the_whole_way_from_times_to_the_file(encodings, decide, tmp_path, monkeypatch):
    """With the real forms, and kernels that are interpreted."""
    monkeypatch.setattr(decide, 'ENCODINGS', {encodings: decide.ENCODINGS[encodings]})
    times, expected = TIMES[encodings]
    sizes, place = sizes_of(decide, lengths=(32,)), tmp_path / 'folder' / 'file.json'
    with made_for('interpreter', KIND):
        page = decide.run(sizes, place, watch=functools.partial(pretended, times))
    made = decisions.read(place)[KIND]['decisions']
    assert made == [Decision(encodings, width=16, dtype='float32', **expected)]
    assert place.with_suffix('.md').read_text() == page
    rows = [line.split(' | ') for line in page.splitlines() if line.startswith('| ')]
    assert [row[3] for row in rows[2:]] == ['blocked', 'kernel 8 x 16', 'kernel 16 x 16', 'JAX']
    assert max(float(row[6].strip(' |')) for row in rows[2:]) < 2e-6
    block = expected.get('block')
    assert f'- {encodings}: {f"our kernel, tile {block[0]} x 16" if block else "blocks"}' in page


@pytest.mark.parametrize('longer', [dict(blocked=2.0, kernel=2.0), dict(blocked=1.0, kernel=1.0)])
def test_a_kernel_that_wins_at_one_length_alone_is_not_taken(longer, decide):
    sizes = sizes_of(decide, tiles=TILES[:1])
    found = {('bias', 32): timed(decide, 2.0, 1.0), ('bias', 48): timed(decide, **longer)}
    assert [made.form for made in decide.decide(found, sizes)] == ['blocked']


def test_each_encoding_is_of_its_class(decide):
    tok, q = pj.Tokens.of(length=8), jnp.ones((1, 8, 2, 16))
    for encodings, spec in decide.ENCODINGS.items():
        encoding = decide.encoding_of(spec, length=8, heads=2, width=16)
        x = jnp.zeros((1, 8 + encoding.lookback, 32))
        assert policy.class_of(encoding, *encoding.project(q, q, q, tok, tok, x)) == encodings
    assert set(decide.ENCODINGS) == set(decisions.CLASSES)


def test_attention_of_the_reference_is_another_computation(decide):
    """The reference notices a wrong bias and a wrong gradient."""
    sizes = sizes_of(decide)
    arguments = sizes.inputs(32)
    exact = decide.reference(sizes, 'alibi()', arguments)
    made = decide.layer('alibi()', 'blocked', length=32, heads=2, width=16)
    found = decide.programs(made, arguments)['both']()
    assert decide.error(found, exact) < 2e-6
    other = decide.reference(sizes, 'nope()', arguments)
    assert decide.error(found, other) > 1e-2
    for n in range(4):
        wrong = [a * (1.01 if n == number else 1) for number, a in enumerate(found)]
        assert decide.error(wrong, exact) > 1e-3


def timed(decide, blocked, kernel, jax=None, error=1e-6, refused=''):
    one = lambda seconds, error: decide.Timed(dict.fromkeys(decide.PASSES, seconds), error)
    kernels = {
        decide.tile_name(tile): decide.Timed(refused=refused) if refused else one(kernel, error)
        for tile in TILES[:1]
    }
    return {'blocked': one(blocked, 1e-6), **kernels, 'JAX': one(jax or blocked, 1e-6)}


@pytest.mark.parametrize(
    'given, form',
    [
        (dict(blocked=1.1, kernel=1.0), 'kernel'),
        (dict(blocked=1.09, kernel=1.0), 'blocked'),
        (dict(blocked=9.0, kernel=1.0, error=1e-4), 'blocked'),  # fast and wrong
        (dict(blocked=9.0, kernel=1.0, error=np.nan), 'blocked'),
        (dict(blocked=9.0, kernel=1.0, refused='Error: no memory'), 'blocked'),
        (dict(blocked=9.0, kernel=1.0, refused='not timed, the time was over'), 'blocked'),
    ],
)
def test_a_kernel_wins_by_a_tenth(given, form, decide):
    sizes = sizes_of(decide, tiles=TILES[:1], lengths=(32,))
    (made,) = decide.decide({('bias', 32): timed(decide, **given)}, sizes)
    assert (made.form, made.encodings, made.library) == (form, 'bias', True)


@pytest.mark.parametrize('jax, keeps', [(1.05, True), (1.2, False), (0.5, True)])
def test_the_kernel_of_jax_stays_first_unless_it_loses_by_a_tenth(jax, keeps, decide):
    sizes = sizes_of(decide, tiles=TILES[:1], lengths=(32,))
    (made,) = decide.decide({('none', 32): timed(decide, 2.0, 1.0, jax)}, sizes)
    assert made.library == keeps and made.form == 'kernel'


def test_a_kernel_that_fails_at_the_longer_text_is_not_taken(decide):
    sizes = sizes_of(decide, tiles=TILES[:1])
    longer = timed(decide, 2.0, 1.0, refused='XlaRuntimeError: no memory')
    (made,) = decide.decide({('bias', 32): timed(decide, 2.0, 1.0), ('bias', 48): longer}, sizes)
    assert made.form == 'blocked'


def test_the_time_is_bounded(decide):
    sizes, seconds = sizes_of(decide, lengths=(32,), seconds=5.0, rounds=1), iter(range(100))
    with made_for('interpreter', KIND):
        found = decide.measure(sizes, lambda name, call: 1.0, lambda: float(next(seconds)))
    shown = [one.refused for forms in found.values() for one in forms.values()]
    assert shown[:5] == [''] * 5 and set(shown[5:]) == {'not timed, the time was over'}
    assert [made.encodings for made in decide.decide(found, sizes)] == ['none', 'bias']


def test_a_cpu_is_refused_in_one_line(decide, monkeypatch, capsys):
    accelerator = importlib.import_module('accelerator')
    monkeypatch.setattr('sys.argv', ['accelerator.py', '--decide'])
    with pytest.raises(SystemExit):
        accelerator.main()
    assert '--decide needs a GPU or a TPU, this is a CPU' in capsys.readouterr().err

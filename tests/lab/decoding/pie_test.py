"""PIE: an edited cache against the cache of the edited text, which is computed again from
nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.pie import edit, pie_keys
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden
from tests.lab.decoding import passes
from tests.refusals import check_refused

GOLDEN = golden('pie')['values']
TEXT = np.random.default_rng(0).integers(0, 13, (2, 20))
CAPACITY = 28
EDITS = [
    (14, 14, [3, 1]),
    (2, 5, [7]),
    (8, 10, []),
    (17, 18, [5, 5, 2, 9]),
]  # in no order: insert, replace, delete, replace

PREFILL, STEP = jax.jit(functools.partial(prefill, last=1)), jax.jit(decode_step)


model_of = functools.partial(passes.model_of, layers=1, width=32)


def filled_with(model, text, **tokens):
    tok = pj.Tokens.of(**tokens) if tokens else pj.Tokens.of(length=CAPACITY)
    return PREFILL(model, init_cache(model, tok), jnp.asarray(text))


def edited_text(text, edits):
    for start, end, ids in sorted(edits, reverse=True):
        new = np.broadcast_to(np.asarray(ids, int), (len(text), len(ids)))
        text = np.concatenate([text[:, :start], new, text[:, end:]], axis=1)
    return text


def close(cache, expected, atol=5e-6):
    assert int(cache.cursor) == int(expected.cursor) and len(cache.layers) == len(expected.layers)
    for ours, theirs in zip(cache.layers, expected.layers):
        for name in ('k', 'v'):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(theirs, name), atol=atol, err_msg=name
            )


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_a_moved_key_is_the_key_rotated_there(layout):
    theta = rope_frequencies(4, 10000.0)
    angles = lambda pos: jnp.asarray(pos * theta, jnp.float32)[None, None]
    key = jnp.asarray(GOLDEN['key_at_0']).reshape(1, 1, 1, 4)
    there = pie_keys(key, angles(0), angles(3), layout=layout)
    np.testing.assert_allclose(there.ravel(), GOLDEN[f'{layout}_at_3'], atol=1e-6)
    np.testing.assert_allclose(pie_keys(there, angles(3), angles(0), layout=layout), key, atol=1e-6)
    np.testing.assert_array_equal(pie_keys(there, angles(3), angles(3), layout=layout), there)


@pytest.mark.full
def test_a_moved_key_equals_direct_rotation_far_out():
    raw = jax.random.normal(jax.random.key(0), (1, 50, 2, 64))
    old, new = 100_000 + jnp.arange(50)[None], 103_210 + jnp.arange(50)[None]
    part = pj.make('rope()', head_dim=64)
    first = lambda a: jnp.swapaxes(a, 1, 2)
    moved = pie_keys(first(rope(raw, old)), part.angles(old)[0], part.angles(new)[0])
    np.testing.assert_allclose(moved, first(rope(raw, new)), atol=4e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec',
    [
        # an attention factor
        'rope(layout="interleaved", partial=0.5, freqs=yarn(factor=4.0))',
        # one that begins at position 4
        'rope(freqs=longrope(long=[1.5, 2.0, 3.0, 4.0], factor=4.0, start=4, mode="long"))',
        'rope() | window(size=5)',
        'randomized_pe(max_len=64, eval_len=28) | rope()',  # slots whose positions jump
    ],
)
def test_with_one_layer_it_is_recomputation(spec):
    model = model_of(encoding=spec)
    changed = edit(model, filled_with(model, TEXT)[1], EDITS)
    again = filled_with(model, edited_text(TEXT, EDITS))[1]
    close(changed, again)
    following = jnp.asarray([4, 11])
    np.testing.assert_allclose(
        STEP(model, changed, following)[0], STEP(model, again, following)[0], atol=2e-5
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'edits',
    [[(0, 0, [1, 2])], [(5, 9, [])], [(20, 20, [3])], [(0, 20, [6])], [(3, 3, [1]), (3, 6, [2])]],
)
def test_edits_at_the_borders_of_the_text(edits):
    model = model_of()
    close(
        edit(model, filled_with(model, TEXT)[1], edits),
        filled_with(model, edited_text(TEXT, edits))[1],
    )


@pytest.mark.full
def test_rows_with_padding_in_front():
    model, valid = model_of(), np.arange(CAPACITY)[None] >= np.array([[0], [2]])
    start = filled_with(model, TEXT, valid=valid)[1]
    again = filled_with(model, edited_text(TEXT, EDITS), valid=valid)[1]
    for ours, theirs in zip(edit(model, start, EDITS).layers, again.layers):
        for name in ('k', 'v'):
            mask = valid[:, None, :, None]
            real = [np.where(mask, getattr(layer, name), 0) for layer in (ours, theirs)]
            np.testing.assert_allclose(*real, atol=5e-6)


@pytest.mark.full
def test_nothing_changed_is_no_operation_and_there_and_back_restores():
    model = model_of(layers=2)
    cache = filled_with(model, TEXT)[1]
    for edits in ([], [(4, 4, [])]):
        close(edit(model, cache, edits), cache, atol=0)
    drifted = cache
    for _ in range(20):
        drifted = edit(model, edit(model, drifted, [(4, 4, [1, 2, 3])]), [(4, 7, [])])
    close(drifted, cache, atol=2e-5)


@pytest.mark.full
def test_deep_models_keep_the_prefix_and_the_values_and_run_new_tokens_exactly():
    model = model_of(layers=3)
    cache = filled_with(model, TEXT)[1]
    edits = [(6, 9, [1, 2, 3, 4, 5])]
    changed, again = edit(model, cache, edits), filled_with(model, edited_text(TEXT, edits))[1]
    for number, (old, ours, theirs) in enumerate(zip(cache.layers, changed.layers, again.layers)):
        np.testing.assert_array_equal(ours.v[:, :, 11:22], old.v[:, :, 9:20])
        for name in ('k', 'v'):
            ours_, theirs_ = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
            np.testing.assert_allclose(ours_[:, :, :11], theirs_[:, :, :11], atol=5e-6)
            stale = np.abs(ours_[:, :, 11:22] - theirs_[:, :, 11:22]).max()
            assert (stale > 1e-3) == (number > 0)


@pytest.mark.full
def test_leaving_positions_wrong_loses_more():
    """The paper's claim: stale hidden states cost less than positions in conflict."""
    model, random, ours, conflict = model_of(layers=2), np.random.default_rng(1), 0.0, 0.0
    cache = filled_with(model, TEXT)[1]
    for _ in range(5):
        start, ids = int(random.integers(2, 8)), random.integers(0, 13, 6).tolist()
        changed, token = (
            edit(model, cache, [(start, start, ids)]),
            jnp.asarray(random.integers(0, 13, 2)),
        )
        again = filled_with(model, edited_text(TEXT, [(start, start, ids)]))[1]
        wrong = dataclasses.replace(
            changed,
            layers=tuple(
                dataclasses.replace(
                    new, k=new.k.at[:, :, start + 6 : 26].set(old.k[:, :, start:20])
                )
                for new, old in zip(changed.layers, cache.layers)
            ),
        )
        right, by_pie, by_conflict = (
            jax.nn.log_softmax(STEP(model, c, token)[0]) for c in (again, changed, wrong)
        )
        distance = lambda other: float((jnp.exp(right) * (right - other)).sum(-1).mean())
        ours, conflict = ours + distance(by_pie), conflict + distance(by_conflict)
    assert 0 < ours < 0.5 * conflict


@pytest.mark.full
def test_bfloat16_stays_and_is_rotated_in_float32():
    model = model_of(dtype='bfloat16')
    changed = edit(model, filled_with(model, TEXT)[1], EDITS).layers[0]
    assert changed.k.dtype == changed.v.dtype == jnp.bfloat16
    again = filled_with(model, edited_text(TEXT, EDITS))[1].layers[0]
    ours, theirs = (np.asarray(layer.k, np.float32) for layer in (changed, again))
    assert np.abs(ours - theirs).max() < 2**-7 * np.abs(theirs).max()


@pytest.mark.parametrize(
    'message, spec',
    {
        'got alibi': 'alibi()',
        'got xpos': 'xpos()',
        'pie needs one rotary .* got alibi': 'rope() | alibi()',
        "got sinusoidal, which opens 'embed'": 'sinusoidal() | rope()',
        'got 0 of them': 'nope()',
        'DynamicNTK.*depend on the current length': 'rope(freqs=dynamic_ntk())',
    }.items(),
)
def test_other_encodings_are_refused_by_name(spec, message):
    model = model_of(encoding=spec)
    with pytest.raises(ValueError, match=message):
        edit(model, init_cache(model, pj.Tokens.of(length=CAPACITY)), EDITS)


def test_wrong_edits_are_errors():
    model = model_of()
    cache = filled_with(model, TEXT)[1]
    padded = filled_with(model, TEXT, valid=np.arange(CAPACITY)[None] >= np.array([[0], [3]]))[1]
    by_ids = dataclasses.replace(cache, unplaced=pj.Tokens.of(ids=np.zeros((1, CAPACITY), int)))
    packed = filled_with(model, TEXT, segment=np.arange(CAPACITY)[None] // 10)[1]
    refused = {  # message -> the edits that it is about, of the cache above
        '2 .. 6 and 5 .. 7 overlap': [(2, 6, []), (5, 7, [1])],
        '2 .. 2 and 2 .. 2 overlap': [(2, 2, [1]), (2, 2, [1])],
        '19 .. 21 lies outside the text': [(19, 21, [1])],
        '5 .. 4 lies outside': [(5, 4, [1])],
        '-1 .. 4 lies outside': [(-1, 4, [1])],
        'integer slots, got 1.5': [(1.5, 4, [1])],
        r'0 .. 12, got 13 .. 13': [(1, 4, [13])],
        'sequence of integers, got float64': [(1, 4, [0.5])],
        '29 tokens does not fit a cache of 28': [(4, 4, [1] * 9)],
        r'a list of \(start, end, token ids\), got \(1, 3\) in it': [(1, 3)],
        'got 1 in it': (1, 3, [2]),
    }
    check_refused({said: functools.partial(edit, model, cache, e) for said, e in refused.items()})
    twice, keys = cache.layers * 2, tuple(own.k for own in cache.layers)
    caches = {  # message -> the cache that it is about
        'all rows have tokens from 3 on': padded,
        'places tokens by their ids': by_ids,
        'packed documents': packed,
        'call prefill first': init_cache(model, pj.Tokens.of(length=8)),
        'layers, the model has': dataclasses.replace(cache, layers=twice),
        'needs a cache of LayerCaches': dataclasses.replace(cache, layers=keys),
    }
    edits = [(2, 4, [1])]
    check_refused({said: functools.partial(edit, model, c, edits) for said, c in caches.items()})

"""GALI: ids and chunks of the sheet, the definition pair by pair against tiles, chunks, decoding of
a model, noise, errors.
"""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.methods.gali import gali_chunks, gali_ids, gali_normals, gali_slots
from tests.golden_files import golden, golden_suite
from tests.methods.by_distance import (
    ROTARY,
    WIDTH,
    check_decoding,
    logits,
    qkv,
    rotary_logits,
    run,
    softmax,
)
from tests.methods.models import decoded, model_of, read, text
from tests.refusals import refused

GOLDEN = golden('gali')['values']
TRAINED, LOCAL = 8, 2


def encoding(chunk=3, local=LOCAL, inner='rope()', more=''):
    spec = f'gali(encoding={inner}, chunk={chunk}, local={local}, train_len={TRAINED}{more})'
    return pj.make(spec, head_dim=WIDTH, heads=2, causal=True)


def ids_of(total, local=LOCAL):
    """The ids of a text, as fractions, in the words of the sheet."""
    if total <= TRAINED:
        return [Fraction(r) for r in range(total)]
    parts = math.ceil((total - local) / (TRAINED - local))
    divided = math.ceil((total - TRAINED) / (parts - 1))
    spaced = [r // parts + Fraction(r % parts, parts) for r in range(total - (TRAINED - divided))]
    return spaced + [Fraction(p) for p in range(divided, TRAINED)]


def defined(q, k, v, chunk, logits=logits, local=LOCAL):
    """Attention with two tables of whole distances, and what the second weighs, query by query."""
    length = q.shape[1]
    chunks = gali_chunks(length, TRAINED, chunk)
    ends = np.repeat(np.cumsum(chunks), chunks)
    near, far, weight = np.zeros((3, length, length))
    for i in range(length):
        ids = ids_of(int(ends[i]), local)
        a = math.ceil(ids[i])
        for j in range(i + 1):
            near[i, j], far[i, j] = a - math.ceil(ids[j]), a - math.floor(ids[j])
            weight[i, j] = (a - ids[j]) % 1
    # Of a text of k M tokens the last one stands behind M - 1.
    assert max(near.max(), far.max()) == (TRAINED if local == 0 else TRAINED - 1)
    return softmax((1 - weight) * logits(q, k, near) + weight * logits(q, k, far), v)


@jax.jit
def scored(part, q, k):
    """All logits of one head after the other, those of later keys among them."""
    tok = pj.Tokens.of(length=q.shape[1])
    q, k, _, tq, tk = part.project(q, k, k, tok, tok)
    return pair_logits(part, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0][0]


def golden_ids(part):
    """Function of a row: the first or the last ids of its text."""

    def ids(row):
        total, taken = row['total'], len(row[part])
        found = gali_ids(jnp.arange(total), jnp.array(total), row['train_len'], row['local'])
        return found[:taken] if part == 'first' else found[total - taken :]

    return ids


def slots(row):
    return gali_slots(jnp.array(row['total']), row['train_len'], row['local'])


def chunks(row):
    return gali_chunks(row['total'], row['train_len'], row['chunk'])


test_golden = golden_suite('gali') | {
    'ids.*.parts': lambda row: slots(row)[0],
    'ids.*.divided': lambda row: slots(row)[1] - row['total'] + row['train_len'],
    'chunks.*.lengths': chunks,
    **{
        f'ids.{number}.{part}': golden_ids(part)
        for number, row in enumerate(GOLDEN['ids'])
        for part in ('first', 'last')
        if part in row
    },
}


def test_ids_ascend_from_the_first_to_the_last_trained_position_and_stay_whole_nearby():
    compiled = jax.jit(gali_ids, static_argnums=(2, 3))
    ids_in = lambda total, *sizes: np.asarray(
        compiled(jnp.arange(300), jnp.array(total), *sizes)[:total]
    )
    for train_len, local in ((8, 2), (16, 4), (9, 1), (5, 4), (8, 0)):
        for total in (*range(train_len + 1, 4 * train_len), 300):
            ids = ids_in(total, train_len, local)
            assert (np.diff(ids) > 0).all() and ids[0] == 0
            assert train_len - 1 <= ids[-1] < train_len and (local == 0 or ids[-1] == train_len - 1)
            assert ids[total - local :].tolist() == list(range(train_len - local, train_len))
    for total in range(1, 9):
        np.testing.assert_array_equal(ids_in(total, 8, 2), np.arange(total))


@pytest.mark.parametrize('chunk, local', [(1, LOCAL), (100, LOCAL), (0.5, LOCAL), (1, 0), (8, 0)])
@pytest.mark.full
def test_tiles_equal_the_definition(chunk, local):
    arrays, tok = qkv(27), pj.Tokens.of(length=27)
    expected = defined(*arrays, chunk, local=local)
    for block in (None, (5, 3)):
        out = run(encoding(chunk, local), tok, *arrays, block=block)
        np.testing.assert_allclose(out, expected, atol=5e-6)


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    arrays, tok = qkv(21), pj.Tokens.of(length=21)
    expected = jax.jit(lambda *a: defined(*a, 3, rotary_logits))(*arrays)
    out = run(encoding(inner=ROTARY), tok, *arrays, block=(5, 4))
    np.testing.assert_allclose(out, expected, atol=5e-6)


@pytest.mark.full
def test_decoding_over_keys_cached_once_is_reading_token_by_token():
    """At step 15 there are 16 tokens: with local 0 no whole one of them is left."""
    check_decoding(encoding(1, 0), 19, (7, 8, 15, 18))


@pytest.mark.full
def test_a_model_that_decodes_reads_in_chunks_of_one_and_not_in_one_pass():
    """Steps equal chunks of one; a later chunk leaves what earlier ones computed; a step after a
    chunk is the next chunk.
    """
    ids = text(1, 20)
    by_steps, by_four = (
        model_of(f'gali(encoding=rope(), chunk={chunk}, local={LOCAL})') for chunk in (1, 4)
    )
    first = lambda length: pj.Tokens.of(valid=np.arange(20)[None] < length)
    one_pass = lambda model, length: np.asarray(read(model, ids, first(length)))[:, :length]
    stepwise = one_pass(by_steps, 20)
    np.testing.assert_allclose(decoded(by_steps, ids, 6), stepwise, atol=2e-5)
    half, whole = one_pass(by_four, 16), one_pass(by_four, 20)  # 8 + 4 + 4 are whole chunks
    assert np.abs(whole - stepwise).max() > 1e-3
    np.testing.assert_allclose(whole[:, :16], half, atol=2e-5)
    after = decoded(by_four, ids[:, :17], 16)
    np.testing.assert_allclose(after[:, :16], half, atol=2e-5)
    np.testing.assert_allclose(after[:, 16], one_pass(by_four, 17)[:, 16], atol=2e-5)


def test_what_packs_pads_and_reads_on_knows_its_own_length():
    tok = pj.Tokens.of(segment=np.repeat([[0, 1]], [12, 9], axis=1))
    believed = jax.jit(encoding(3).parts[0].believed)
    assert believed(tok, tok)[0].tolist() == [8] * 8 + [11] * 3 + [12] + [8] * 8 + [9]
    padded = pj.Tokens.of(valid=np.arange(14)[None] >= 4)
    assert believed(padded, padded)[0, 4:].tolist() == [8] * 8 + [10] * 2


NORMALS = jax.jit(gali_normals)


@pytest.mark.full
def test_noise_is_normal_in_proportion_to_the_distance_and_only_between_whole_positions():
    q, k, _ = qkv(20)
    plain, *noisy = (
        np.asarray(scored(encoding(100, more=more).parts[0], q, k))
        for more in ('', ', noise=2.0, seed=5', ', noise=2.0, seed=6')
    )
    added, other = (a - plain for a in noisy)
    pos = np.arange(20)[None]
    normals = np.asarray(NORMALS(5, np.arange(2), pos, pos))[0]
    between = np.array([p % 1 != 0 for p in ids_of(20)])
    gap = np.subtract.outer(np.arange(20), np.arange(20))
    read_late = (np.arange(20) >= TRAINED)[:, None]
    expected = np.where(between & read_late, 2.0 * gap / 20 * normals, 0.0)
    np.testing.assert_allclose(added, expected, atol=2e-5)
    assert np.abs(added[0] - added[1]).max() > 0.1 and np.abs(added - other).max() > 0.1


def test_numbers_of_pairs_are_standard_normal():
    pos = np.arange(200)[None]
    draws = np.asarray(NORMALS(0, np.arange(4), pos, pos)).reshape(4, -1)
    np.testing.assert_allclose(draws.mean(1), 0.0, atol=0.02)  # 4 standard errors
    np.testing.assert_allclose(draws.std(1), 1.0, atol=0.015)
    np.testing.assert_allclose((np.abs(draws) < 1).mean(1), 0.6827, atol=0.01)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.02 and np.isfinite(draws).all()
    square = draws.reshape(4, 200, 200)
    for a in (square, square.swapaxes(1, 2)):  # neighbours
        assert abs(np.corrcoef(a[:, 1:].ravel(), a[:, :-1].ravel())[0, 1]) < 0.01


HALVES = dataclasses.replace(pj.Tokens.of(length=9), pos=jnp.arange(9)[None] / 2)
NOISY = pj.make('gali(encoding=rope(), noise=1.0)', head_dim=WIDTH, heads=1, train_len=16)
test_wrong_calls = refused() | {
    'local must be between 0 and train_len - 1 = 7, got 8': lambda: gali_slots(20, 8, 8),
    'between 0 and train_len - 1 = 7, got -1; the nearest is 0': lambda: gali_ids(
        jnp.arange(20), jnp.array(20), 8, -1
    ),
    'a number of tokens, an int, or a fraction below 1, got .*4.*; the nearest is 4': lambda: (
        gali_chunks(20, 8, np.int64(4))
    ),
    'a text has at least 1 token, got 0': lambda: gali_chunks(0, 8, 4),
    'gali needs train_len, .* got 0': lambda: gali_chunks(20, 0, 4),
    'at least one token, got chunk=0.1 with train_len=8': lambda: gali_chunks(20, 8, 0.1),
    'at least one token, got chunk=0 with train_len=8': lambda: gali_chunks(20, 8, 0),
    'must be integers, got float32': lambda: encoding().project(*qkv(9), HALVES, HALVES),
    'gali has parameters of 1 heads, the queries have 2': lambda: scored(NOISY, *qkv(9)[:2]),
}


@pytest.mark.parametrize('train_len, local', [(4096, 128), (64, 8), (7, 0)])
def test_default_window(train_len, local):
    part = pj.make('gali(encoding=rope())', head_dim=8, heads=2, train_len=train_len)
    assert (part.local, part.chunk, part.noise) == (local, 3000, 0.0)

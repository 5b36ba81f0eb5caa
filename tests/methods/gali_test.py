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
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.gali import gali_chunks, gali_ids, gali_slots, pair_normals
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
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

GOLDEN = golden('gali')['values']
TRAINED, LOCAL = 8, 2


def encoding(chunk=3, local=LOCAL, **options):
    more = ''.join(f', {name}={value}' for name, value in options.items())
    spec = f'gali(encoding=rope(), chunk={chunk}, local={local}, train_len={TRAINED}{more})'
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
    ends = np.repeat(
        np.cumsum(gali_chunks(length, TRAINED, chunk)), gali_chunks(length, TRAINED, chunk)
    )
    near, far, weight = np.zeros((3, length, length))
    for i in range(length):
        ids = ids_of(int(ends[i]), local)
        a = math.ceil(ids[i])
        for j in range(i + 1):
            near[i, j], far[i, j], weight[i, j] = (
                a - math.ceil(ids[j]),
                a - math.floor(ids[j]),
                (a - ids[j]) % 1,
            )
    farthest = (
        TRAINED if local == 0 else TRAINED - 1
    )  # of a text of k M tokens the last one stands behind M - 1
    assert max(near.max(), far.max()) == farthest
    return softmax((1 - weight) * logits(q, k, near) + weight * logits(q, k, far), v)


@jax.jit
def scored(part, q, k):
    """All logits of one head after the other, those of later keys among them."""
    tok = pj.Tokens.of(length=q.shape[1])
    q, k, _, tq, tk = part.project(q, k, k, tok, tok)
    return pair_logits(part, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0][0]


@pytest.mark.parametrize('row', GOLDEN['ids'], ids=lambda row: str(row['total']))
def test_golden_ids(row):
    total, train_len, local = row['total'], row['train_len'], row['local']
    parts, fractions = gali_slots(jnp.array(total), train_len, local)
    assert (int(parts), int(fractions)) == (row['parts'], total - train_len + row['divided'])
    ids = gali_ids(jnp.arange(total), jnp.array(total), train_len, local).tolist()
    assert ids[: len(row.get('first', []))] == row.get('first', [])
    assert ids[total - len(row.get('last', [])) :] == row.get('last', [])


@pytest.mark.parametrize('row', GOLDEN['chunks'], ids=lambda row: str(row['chunk']))
def test_golden_chunks(row):
    assert gali_chunks(row['total'], row['train_len'], row['chunk']) == row['lengths']


def test_ids_ascend_from_the_first_to_the_last_trained_position_and_stay_whole_nearby():
    ids_in = jax.jit(gali_ids, static_argnums=(2, 3))
    for train_len, local in ((8, 2), (16, 4), (9, 1), (5, 4), (8, 0)):
        for total in (*range(train_len + 1, 4 * train_len), 300):
            ids = np.asarray(ids_in(jnp.arange(300), jnp.array(total), train_len, local))[:total]
            assert (np.diff(ids) > 0).all() and ids[0] == 0
            assert train_len - 1 <= ids[-1] < train_len and (local == 0 or ids[-1] == train_len - 1)
            assert ids[total - local :].tolist() == list(range(train_len - local, train_len))
    for total in range(1, 9):
        np.testing.assert_array_equal(
            ids_in(jnp.arange(300), jnp.array(total), 8, 2)[:total], np.arange(total)
        )


@pytest.mark.parametrize('chunk, local', [(1, LOCAL), (100, LOCAL), (0.5, LOCAL), (1, 0), (8, 0)])
@pytest.mark.full
def test_tiles_equal_the_definition(chunk, local):
    arrays, tok = qkv(27), pj.Tokens.of(length=27)
    expected = defined(*arrays, chunk, local=local)
    for block in (None, (5, 3)):
        np.testing.assert_allclose(
            run(encoding(chunk, local), tok, *arrays, block=block), expected, atol=5e-6
        )


@pytest.mark.full
def test_tiles_and_their_gradients_equal_the_definition_and_its_gradients():
    arrays, tok = qkv(21), pj.Tokens.of(length=21)
    weights = jax.random.normal(jax.random.key(9), (1, 21, 2, WIDTH))
    weighted = lambda out: ((out * weights).sum(), out)
    gradients = lambda attention: jax.jit(
        jax.grad(lambda *a: weighted(attention(*a)), (0, 1, 2), has_aux=True)
    )(*arrays)
    slopes, expected = gradients(lambda *a: defined(*a, 3))
    for block in (None, (5, 3)):
        ours, out = gradients(lambda *a: run(encoding(), tok, *a, block=block))
        np.testing.assert_allclose(out, expected, atol=5e-6)
        for a, b in zip(ours, slopes):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    spec = f'gali(encoding={ROTARY}, chunk=3, local={LOCAL}, train_len={TRAINED})'
    part, (q, k, v) = pj.make(spec, head_dim=WIDTH, heads=2, causal=True), qkv(21)
    expected = jax.jit(lambda *a: defined(*a, 3, rotary_logits))(q, k, v)
    np.testing.assert_allclose(
        run(part, pj.Tokens.of(length=21), q, k, v, block=(5, 4)), expected, atol=5e-6
    )


@pytest.mark.full
def test_within_the_trained_length_and_near_a_query_keys_are_as_far_as_in_rope():
    """Near are those with whole ids, for a query that has one: the logit is that of i - j."""
    (q, k, _), plain, part = qkv(20), pj.make('rope()', head_dim=WIDTH), encoding(100).parts[0]
    ours, theirs = (np.asarray(scored(encoding, q, k)) for encoding in (part, plain))
    np.testing.assert_allclose(ours[..., 18:, 18:], theirs[..., 18:, 18:], atol=2e-6)
    trained = np.tril_indices(TRAINED)
    np.testing.assert_allclose(ours[:, *trained], theirs[:, *trained], atol=1e-6)


@pytest.mark.full
def test_decoding_over_keys_cached_once_is_reading_token_by_token():
    check_decoding(
        encoding(1, 0), 19, (7, 8, 15, 18)
    )  # 16 tokens at step 15: with local 0 no whole one of them is left


MODEL = dict(vocab_size=11, train_len=TRAINED, layers=2, width=16, heads=2)
READ, READ_PROMPT, STEP = (
    jax.jit(lambda model, *text: model(*text)),
    jax.jit(prefill),
    jax.jit(decode_step),
)


def decoded(model, tokens, prompt):
    """Logits of every token, the prompt's at once and the others' through the cache."""
    first, cache = READ_PROMPT(
        model, init_cache(model, pj.Tokens.of(length=tokens.shape[1])), tokens[:, :prompt]
    )
    rows = [np.asarray(first)]
    for n in range(prompt, tokens.shape[1]):
        row, cache = STEP(model, cache, tokens[:, n])
        rows.append(np.asarray(row)[:, None])
    return np.concatenate(rows, axis=1)


@pytest.mark.full
def test_a_model_that_decodes_reads_in_chunks_of_one_and_not_in_one_pass():
    """Steps equal chunks of one; a later chunk leaves what earlier ones computed; a step after a
    chunk is the next chunk.
    """
    tokens = np.random.default_rng(1).integers(11, size=(1, 20), dtype=np.int32)
    by_steps, by_four = (
        Transformer(
            TransformerConfig(
                **MODEL, encoding=f'gali(encoding=rope(), chunk={chunk}, local={LOCAL})'
            ),
            rngs=nnx.Rngs(0),
        )
        for chunk in (1, 4)
    )
    first = lambda length: pj.Tokens.of(valid=np.arange(20)[None] < length)
    read = lambda model, length: np.asarray(READ(model, tokens, first(length)))[:, :length]
    stepwise = read(by_steps, 20)
    np.testing.assert_allclose(decoded(by_steps, tokens, 6), stepwise, atol=2e-5)
    half, whole = read(by_four, 16), read(by_four, 20)  # 8 + 4 + 4 are whole chunks
    assert np.abs(whole - stepwise).max() > 1e-3
    np.testing.assert_allclose(whole[:, :16], half, atol=2e-5)
    after = decoded(by_four, tokens[:, :17], 16)
    np.testing.assert_allclose(after[:, :16], half, atol=2e-5)
    np.testing.assert_allclose(after[:, 16], read(by_four, 17)[:, 16], atol=2e-5)


def test_what_packs_pads_and_reads_on_knows_its_own_length():
    tok = pj.Tokens.of(segment=np.repeat([[0, 1]], [12, 9], axis=1))
    believed = jax.jit(encoding(3).parts[0].believed)
    assert believed(tok, tok)[0].tolist() == [8] * 8 + [11] * 3 + [12] + [8] * 8 + [9]
    padded = pj.Tokens.of(valid=np.arange(14)[None] >= 4)
    assert believed(padded, padded)[0, 4:].tolist() == [8] * 8 + [10] * 2


NORMALS = jax.jit(pair_normals)


@pytest.mark.full
def test_noise_is_normal_in_proportion_to_the_distance_and_only_between_whole_positions():
    q, k, _ = qkv(20)
    plain, *noisy = (
        np.asarray(scored(encoding(100, **more).parts[0], q, k))
        for more in ({}, dict(noise=2.0, seed=5), dict(noise=2.0, seed=6))
    )
    added, other = (a - plain for a in noisy)
    pos = np.arange(20)[None]
    normals = np.asarray(NORMALS(5, np.arange(2), pos, pos))[0]
    between = np.array([p % 1 != 0 for p in ids_of(20)])
    gap = np.subtract.outer(np.arange(20), np.arange(20))
    read_late = (np.arange(20) >= TRAINED)[:, None]
    np.testing.assert_allclose(
        added, np.where(between & read_late, 2.0 * gap / 20 * normals, 0.0), atol=2e-5
    )
    assert np.abs(added[0] - added[1]).max() > 0.1 and np.abs(added - other).max() > 0.1


def test_numbers_of_pairs_are_standard_normal():
    pos = np.arange(200)[None]
    draws = np.asarray(NORMALS(0, np.arange(4), pos, pos)).reshape(4, -1)
    np.testing.assert_allclose(draws.mean(1), 0.0, atol=0.02)  # 4 standard errors
    np.testing.assert_allclose(draws.std(1), 1.0, atol=0.015)
    np.testing.assert_allclose((np.abs(draws) < 1).mean(1), 0.6827, atol=0.01)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.02 and np.isfinite(draws).all()
    square = draws.reshape(4, 200, 200)
    for a, b in (
        (square[:, 1:], square[:, :-1]),
        (square[:, :, 1:], square[:, :, :-1]),
    ):  # neighbours
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(
    'spec, message',
    [
        ('gali(encoding=alibi())', 'rotary encoding, got alibi'),
        ('gali(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        (
            'gali(encoding=rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0)))',
            'use start=0',
        ),
        (
            'gali(encoding=rope(), local=64)',
            'between 0 and train_len - 1 = 63, got 64; the nearest is 63',
        ),
        (
            'gali(encoding=rope(), local=-1)',
            'between 0 and train_len - 1 = 63, got -1; the nearest is 0',
        ),
        ('gali(encoding=rope(), train_len=0)', 'needs train_len, .* got 0'),
        ('gali(encoding=rope(), chunk=0)', 'chunk=0 with train_len=64'),
        ('gali(encoding=rope(), chunk=0.01)', 'chunk=0.01 with train_len=64'),
        ('gali(encoding=rope(), chunk=2.6)', 'fraction below 1, got 2.6; the nearest is 3'),
        ('gali(encoding=rope(), noise=-1.0)', 'at least 0, got -1.0'),
        ('gali()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)


def test_the_pure_functions_refuse_what_the_encoding_refuses():
    for call, message in (
        (lambda: gali_slots(20, 8, 8), 'local must be between 0 and train_len - 1 = 7, got 8'),
        (
            lambda: gali_ids(jnp.arange(20), jnp.array(20), 8, -1),
            'between 0 and train_len - 1 = 7, got -1; the nearest is 0',
        ),
        (
            lambda: gali_chunks(20, 8, np.int64(4)),
            'a number of tokens, an int, or a fraction below 1, got .*4.*; the nearest is 4',
        ),
        (lambda: gali_chunks(0, 8, 4), 'a text has at least 1 token, got 0'),
        (lambda: gali_chunks(20, 0, 4), 'gali needs train_len, .* got 0'),
        (lambda: gali_chunks(20, 8, 0.1), 'at least one token, got chunk=0.1 with train_len=8'),
        (lambda: gali_chunks(20, 8, 0), 'at least one token, got chunk=0 with train_len=8'),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_positions_that_are_not_whole_are_refused():
    tok = dataclasses.replace(pj.Tokens.of(length=9), pos=jnp.arange(9)[None] / 2)
    with pytest.raises(ValueError, match='must be integers, got float32'):
        encoding().project(*qkv(9), tok, tok)


def test_noise_of_another_number_of_heads_is_refused():
    part = pj.make('gali(encoding=rope(), noise=1.0)', head_dim=WIDTH, heads=1, train_len=16)
    with pytest.raises(ValueError, match='gali has parameters of 1 heads, the queries have 2'):
        scored(part, *qkv(9)[:2])


@pytest.mark.parametrize('train_len, local', [(4096, 128), (64, 8), (7, 0)])
def test_default_window(train_len, local):
    part = pj.make('gali(encoding=rope())', head_dim=8, heads=2, train_len=train_len)
    assert (part.local, part.chunk, part.noise) == (local, 3000, 0.0)

"""Tests of gmu_hybrid: the unit and the shared attention by NumPy, what each part reads, one cache
of full length, and prompts that pass the upper half with their last token.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from evidence.experiments import sweep
from posenc_jax.lab.decoding.bounded_windows import BoundedWindows, bounded_windows
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.runs.run import resolve
from posenc_jax.mixers.cheems import Cheems
from posenc_jax.mixers.gmu_hybrid import GMUHybrid, Memory, gated_memory, pattern_of
from tests.golden_files import golden
from tests.mixers.small import assert_all_learn, model_of
from tests.mixers.small import normal as draw

GOLDEN = golden('gmu_hybrid')
B, T, HEADS, KV, WIDTH, D = 2, 7, 4, 2, 3, 8
SIZES = dict(heads=HEADS, kv_heads=KV, head_dim=WIDTH, model_dim=D, layers=4)
TOK = pj.Tokens.of(length=T)


X = draw(0, B, T, D)
MEMORY = Memory(draw(1, B, T, HEADS, WIDTH), draw(2, B, KV, T, WIDTH), draw(3, B, KV, T, WIDTH))


def part_of(part, **fields):
    head_dim = {'head_dim': 4} if part == 'scan' else {}
    return GMUHybrid(part, **{**SIZES, **head_dim, **fields}, rngs=nnx.Rngs(5))


def test_the_unit_by_hand():
    given = [jnp.array(GOLDEN[name]) for name in ('x', 'm', 'w_1', 'w_2')]
    np.testing.assert_allclose(gated_memory(*given), GOLDEN['y'], rtol=1e-5, atol=1e-7)


def test_the_unit_mixes_no_tokens():
    unit = part_of('gmu')
    here = lambda x, m: unit.whole(x, TOK, dataclasses.replace(MEMORY, m=m))[0][0, 3].sum()
    for gradient in jax.grad(here, (0, 1))(X, MEMORY.m):
        reached = np.abs(gradient).reshape(B, T, -1).max(axis=-1)
        assert reached[0, 3] > 0 and np.count_nonzero(reached) == 1


def attention(q, k, v):
    """Causal attention in float64: q [B, T, N, H], k and v [B, K, T, H]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for row, head, place in np.ndindex(B, HEADS, T):
        keys, values = (a[row, head * KV // HEADS, : place + 1] for a in (k, v))
        logits = keys @ q[row, place, head] / np.sqrt(WIDTH)
        weights = np.exp(logits - logits.max())
        out[row, place, head] = weights @ values / weights.sum()
    return out


def test_cross_attention_by_numpy():
    """Queries of its own, over the given keys and values of all tokens up to its own."""
    cross = part_of('cross')
    y, after = cross.whole(X, TOK, MEMORY)
    q = np.einsum('btd,dnh->btnh', X, cross.layer.w_q[...])
    out = attention(q, MEMORY.k, MEMORY.v)
    expected = np.einsum('btnh,nhd->btd', out, cross.layer.w_out[...])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert after is MEMORY


def test_the_shared_layer_is_attention_and_writes_its_keys_and_values():
    keys = part_of('keys')
    y, after = keys.whole(X, TOK, MEMORY)
    own = keys.layer.projections
    q, k, v = (np.einsum('btd,dnh->bnth', X, w[...]) for w in (own.w_q, own.w_k, own.w_v))
    np.testing.assert_allclose(after.k, k, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.v, v, rtol=1e-4, atol=1e-5)
    expected = np.einsum('btnh,nhd->btd', attention(np.swapaxes(q, 1, 2), k, v), own.w_out[...])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after.m, MEMORY.m)


@pytest.mark.full
@pytest.mark.parametrize('gate', [False, True])
def test_the_memory_is_what_the_scan_reads_before_its_gate(gate):
    """The mixer is that of the scan alone; a changed gate or output changes y and leaves m."""
    inner = Cheems(rotate=False, gate=gate, heads=HEADS, head_dim=4, model_dim=D, layers=4,
                   rngs=nnx.Rngs(1))  # fmt: skip
    scan = part_of('scan', scan=inner)
    y, memory = scan.whole(X, TOK, scan.begin_stream(TOK))
    np.testing.assert_allclose(y, inner.whole(X, TOK), rtol=1e-5, atol=1e-6)
    starts = jnp.zeros((B, T), bool)
    np.testing.assert_allclose(memory.m, inner.read(X, TOK, starts, inner.initial(B))[0], rtol=1e-5)
    for changed in (inner.w_z, inner.w_out) if gate else (inner.w_out,):
        changed[...] = 2 * changed[...]
        other, same = scan.whole(X, TOK, scan.begin_stream(TOK))
        np.testing.assert_array_equal(same.m, memory.m)
        assert np.abs(other - y).max() > 1e-2


# Whole models.


def hybrid(layers=8, window=4, **fields):
    sizes = dict(width=16, heads=4, kv_heads=2)
    return model_of(*pattern_of(layers, window=window), **{**sizes, **fields})


@functools.cache
def model():
    return hybrid()


IDS = jax.random.randint(jax.random.key(9), (2, 20), 0, 11)
PADDED = pj.Tokens.of(valid=np.arange(20)[None] >= np.array([[0], [3]]))
prefilled = jax.jit(lambda model, cache, ids: prefill(model, cache, ids, last=1))
logits_of = jax.jit(lambda model, ids, tok: model(ids, tok))


@pytest.mark.full
def test_a_prompt_that_skips_the_upper_half_has_the_logits_of_the_full_pass():
    """Also behind padding, and if a second model of the same layers follows in the pattern."""
    repeated = hybrid(pattern=pattern_of(4))
    for one in (model(), repeated):
        logits, cache = prefilled(one, init_cache(one, PADDED), IDS[:, :9])
        expected = logits_of(one, IDS, PADDED)[:, 8:9]
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        assert np.abs(expected).max() > 0.1
        _, whole = jax.jit(prefill)(one, init_cache(one, PADDED), IDS[:, :9])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cache.layers, whole.layers
        )


@pytest.mark.full
def test_the_upper_half_costs_a_prompt_one_token():
    """By XLA's own count of operations; half of the layers, without their cost, are left."""

    def operations(last):
        run = lambda model, cache, ids: prefill(model, cache, ids, last=last)[0][:, -1]
        empty = init_cache(model(), pj.Tokens.of(length=64))
        lowered = jax.jit(run).lower(model(), empty, jnp.zeros((1, 64), jnp.int32))
        return lowered.cost_analysis()['flops']

    skipped, full = operations(1), operations(None)
    assert skipped < 0.65 * full, skipped / full


def full_length(cache):
    """How many layers keep keys of the whole capacity."""
    return sum(getattr(own, 'k', jnp.zeros((1, 1, 0))).shape[2] == cache.capacity
               for own in cache.layers)  # fmt: skip


@pytest.mark.full
def test_one_cache_has_full_length_and_decoding_with_it_equals_the_full_pass():
    expected = logits_of(model(), IDS, PADDED)
    _, full = prefilled(model(), init_cache(model(), PADDED), IDS[:, :9])
    cache = bounded_windows(model(), full)
    assert (full_length(full), full_length(cache)) == (2, 1)
    step = jax.jit(decode_step)
    for number in range(9, 20):
        logits, cache = step(model(), cache, IDS[:, number])
        np.testing.assert_allclose(logits, expected[:, number], atol=2e-5)
    sizes, empty = [], init_cache(model(), pj.Tokens.of(length=200))
    longer = lambda: bounded_windows(model(), prefilled(model(), empty, IDS[:, :9])[1])
    jax.eval_shape(lambda: sizes.append(longer().nbytes))
    grown = sizes[0] - cache.nbytes
    assert grown == 180 * 2 * 2 * 2 * 4 * 4  # slots, k and v, rows, kv_heads, head_dim, bytes


@pytest.mark.full
def test_generation_keeps_windows_only_and_gives_the_tokens_of_the_full_pass():
    options = dict(max_new_tokens=11, temperature=0.0, valid=PADDED.valid[:, :9])
    out = generate(model(), IDS[:, :9], **options, decoding=BoundedWindows())
    chosen = logits_of(model(), out, PADDED).argmax(-1)
    np.testing.assert_array_equal(out[:, 9:], chosen[:, 8:-1])


@functools.cache
def gradient_of(remat):
    graphdef, params, rest = nnx.split(hybrid(6, remat=remat), nnx.Param, ...)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params, rest)(IDS)).mean()
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.full
@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_every_parameter_learns_and_recomputation_changes_nothing(remat):
    gradient, plain = gradient_of(remat), gradient_of('none')
    assert_all_learn(gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, plain
    )


# Patterns, and the runs of the sweep.


@pytest.mark.full
def test_the_runs_of_the_sweep_are_valid_and_reach_16k_tokens():
    made = sweep.read('gmu_hybrid')['']
    config = str(pathlib.Path(sweep.__file__).parents[2] / 'configs' / 'quickstart.py')
    for run in made.trained(made.parse(['--seeds', '0', '--config', config])).values():
        asked = dataclasses.replace(run, fields={**run.fields, **made.evaluation['far']})
        assert resolve(asked.asked()).task.width(16384) == 16384
    assert made.runs['hybrid']['pattern'] == pattern_of(4, scan='cheems(rotate=False, chunk=64)')


def test_the_pattern():
    half = ['scan', 'window', 'scan', 'keys']
    for layers, expected in {
        4: ['scan', 'keys', 'cross', 'gmu'],
        6: ['scan', 'window', 'keys', 'cross', 'gmu', 'cross'],
        8: [*half, 'cross', 'gmu', 'cross', 'gmu'],
    }.items():
        pattern = pattern_of(layers, scan='cheems(rotate=False, gate=True)', window=5)
        for spec, kind in zip(pattern, expected, strict=True):
            name = 'cheems' if kind == 'scan' else 'window' if kind == 'window' else f"'{kind}'"
            assert name in spec
        assert sum("part='scan'" in spec for spec in pattern) == 1
        last = max(n for n, kind in enumerate(expected) if kind == 'scan')
        assert "part='scan', scan=cheems(rotate=False, gate=True)" in pattern[last]
    assert pattern_of(6, window=5)[1] == 'window(size=5) | nope()'

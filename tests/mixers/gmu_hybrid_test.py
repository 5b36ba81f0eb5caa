"""Tests of gmu_hybrid: the unit and the shared attention by NumPy, what each part reads, one cache
of full length, prompts that pass the upper half with their last token, and refused arguments.
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
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.runs.run import resolve
from posenc_jax.mixers.cheems import Cheems
from posenc_jax.mixers.gmu_hybrid import GMUHybrid, Memory, gated_memory, pattern_of
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('gmu_hybrid')
B, T, HEADS, KV, WIDTH, D = 2, 7, 4, 2, 3, 8
SIZES = dict(heads=HEADS, kv_heads=KV, head_dim=WIDTH, model_dim=D, layers=4)
TOK = pj.Tokens.of(length=T)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = draw(0, B, T, D)
MEMORY = Memory(draw(1, B, T, HEADS, WIDTH), draw(2, B, KV, T, WIDTH), draw(3, B, KV, T, WIDTH))


def part_of(part, **fields):
    head_dim = {'head_dim': 4} if part == 'scan' else {}
    return GMUHybrid(part, **{**SIZES, **head_dim, **fields}, rngs=nnx.Rngs(5))


def test_the_unit_by_hand():
    given = [jnp.array(GOLDEN[name]) for name in ('x', 'm', 'w_1', 'w_2')]
    np.testing.assert_allclose(gated_memory(*given), GOLDEN['y'], rtol=1e-5, atol=1e-7)


def test_without_memory_or_with_a_closed_gate_the_unit_is_zero():
    unit = part_of('gmu')
    assert np.abs(unit.whole(X, TOK, MEMORY)[0]).max() > 0.1
    none = dataclasses.replace(MEMORY, m=0 * MEMORY.m)
    assert not np.any(unit.whole(X, TOK, none)[0])
    unit.layer.w_gate[...] = 0 * unit.layer.w_gate[...]
    assert not np.any(unit.whole(X, TOK, MEMORY)[0])


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


@pytest.mark.full
def test_order_reaches_the_shared_layer_and_the_upper_half_through_the_scan_alone():
    """Earlier tokens in another order, with their keys and values, leave the last result of full
    attention and of cross-attention as it is; that of the scan changes.
    """
    order = jnp.array([3, 0, 5, 1, 4, 2, 6])
    moved = dataclasses.replace(MEMORY, k=MEMORY.k[:, :, order], v=MEMORY.v[:, :, order])
    last = lambda part, x, memory: np.asarray(part.whole(x, TOK, memory)[0][:, -1])
    for part in map(part_of, ('keys', 'cross')):
        before = last(part, X, MEMORY)
        np.testing.assert_allclose(last(part, X[:, order], moved), before, atol=1e-5)
    scan = part_of('scan')
    begun = scan.begin_stream(TOK)
    assert np.abs(last(scan, X[:, order], begun) - last(scan, X, begun)).max() > 1e-2


# Whole models.


def model_of(layers=8, window=4, **fields):
    cfg = TransformerConfig(
        **dict(vocab_size=11, train_len=16, layers=layers, width=16, heads=4, kv_heads=2),
        encoding='',
        **{**dict(pattern=pattern_of(layers, window=window)), **fields},
    )
    return Transformer(cfg, rngs=nnx.Rngs(0))


@functools.cache
def model():
    return model_of()


IDS = jax.random.randint(jax.random.key(9), (2, 20), 0, 11)
PADDED = pj.Tokens.of(valid=np.arange(20)[None] >= np.array([[0], [3]]))
prefilled = jax.jit(lambda model, cache, ids: prefill(model, cache, ids, last=1))
logits_of = jax.jit(lambda model, ids, tok: model(ids, tok))


@pytest.mark.full
def test_a_prompt_that_skips_the_upper_half_has_the_logits_of_the_full_pass():
    """Also behind padding, and if a second model of the same layers follows in the pattern."""
    repeated = model_of(pattern=pattern_of(4))
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
    graphdef, params, rest = nnx.split(model_of(6, remat=remat), nnx.Param, ...)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params, rest)(IDS)).mean()
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.full
@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_every_parameter_learns_and_recomputation_changes_nothing(remat):
    gradient, plain = gradient_of(remat), gradient_of('none')
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, plain
    )


# Patterns, the runs of the sweep, and what is refused.


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


def test_wrong_values_are_refused():
    for layers, nearest in ((5, 6), (2, 4), (0, 4), (-3, 4)):
        with pytest.raises(SpecError, match=f'got {layers}; nearest: {nearest}'):
            pattern_of(layers)
    with pytest.raises(SpecError, match='rotat'):
        pattern_of(8, scan='cheems(rotates=False)')
    with pytest.raises(ValueError, match="part='gmu' has no scan"):
        part_of('gmu', scan=Cheems(heads=4, head_dim=4, model_dim=8, layers=1, rngs=nnx.Rngs(0)))


@pytest.mark.full
def test_wrong_patterns_are_refused():
    sizes = dict(vocab_size=11, train_len=16, width=16, heads=4, encoding='')
    made = lambda *pattern: Transformer(
        TransformerConfig(**sizes, layers=len(pattern), pattern=pattern), rngs=nnx.Rngs(0)
    )
    with pytest.raises(SpecError, match='gru does not tell its result before the gate'):
        made("gmu_hybrid(part='scan', scan=gru())", 'nope()')
    spec = "gmu_hybrid(part='{}')".format
    for pattern in ((spec('scan'), spec('cross')), (spec('gmu'), spec('scan'), spec('keys'))):
        with pytest.raises(ValueError, match='no layer below it in the pattern is one'):
            made(*pattern)
    with pytest.raises(SpecError, match="'scan', 'keys', 'cross', 'gmu'; did you mean 'keys'"):
        made(spec('key'), 'nope()')

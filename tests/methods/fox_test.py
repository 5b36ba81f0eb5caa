"""FoX: weights by hand, ALiBi and PaTH as limits, the 'Pro' block in NumPy, and what pruning leaves
out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.pruned import tiles_needed
from posenc_jax.base.targets import made_for
from posenc_jax.methods.fox import fox_horizons
from tests.golden_files import golden_suite
from tests.methods.from_input import draw_inputs, run

SIZES = B, N, K, H, D = 2, 4, 2, 8, 12
L = 21
INPUTS = draw_inputs(SIZES, L)


def build(arguments='', **context):
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    return pj.make(f'fox({arguments})', causal=True, rngs=nnx.Rngs(0), **sizes)


def weights_of_last(case, **options):
    """The weights of the last query without content, of one head whose gates are given."""
    gates = jnp.asarray(case['gates'])
    count = len(gates)
    encoding = build(heads=1, kv_heads=1, head_dim=count, model_dim=1)
    part = encoding.parts[0]
    part.kernel[...] = jnp.ones((1, 1))
    x = jnp.log(gates / (1 - gates))[None, :, None]
    zero, tok = jnp.zeros((1, count, 1, count)), pj.Tokens.of(length=count)
    return run(encoding, zero, zero, jnp.eye(count)[None, :, None], x, tok, **options)[0, -1, 0]


def needed_carry(case):
    """For queries and keys of length sqrt(H), which norms with weights of 1 give them."""
    ones = jnp.ones((1, case['keys'], 1, case['width']))
    encoding = build(f'prune={case["prune"]}', heads=1, kv_heads=1, head_dim=case['width'])
    tok = pj.Tokens.of(length=case['keys'])
    *_, tq, _ = encoding.project(ones, ones, ones, tok, tok, jnp.zeros((1, case['keys'], D)))
    return tq.feats['fox_needed'][0, 0, 0]


test_golden = golden_suite('fox') | {
    'half.last': (weights_of_last, {'atol': 1e-6}),
    'uneven.last': (weights_of_last, {'atol': 1e-6}),
    'horizons.bias': (lambda case: fox_horizons(*case['range'], 4), {'atol': 1e-6}),
    'horizons.gate': (
        lambda case: 1 / (1 + np.exp(-fox_horizons(*case['range'], 4))),
        {'atol': 1e-6},
    ),
    'needed.carry': (needed_carry, {'rtol': 1e-5}),
}


def test_equal_gates_are_alibi():
    encoding = build("gate='fixed', t_min=2.0, t_max=64.0")
    slopes = -np.log(1 / (1 + np.exp(-fox_horizons(2.0, 64.0, N))))
    np.testing.assert_allclose(slopes, 1 / np.geomspace(2.0, 64.0, N), rtol=1e-12)
    alibi = pj.make(f'alibi(slopes={tuple(slopes.tolist())})', causal=True, heads=N)
    tok = pj.Tokens.of(length=L)
    np.testing.assert_allclose(run(encoding, *INPUTS, tok), run(alibi, *INPUTS, tok), atol=2e-6)
    assert not jax.tree.leaves(nnx.state(encoding, nnx.Param))


@pytest.mark.parametrize('how', [dict(implementation='dense'), dict(block=(8, 5))])
def test_it_is_path_without_its_maps(how):
    """With steps beta = 0 the maps of PaTH are the identity, and its gates are those of FoX."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D, causal=True, rngs=nnx.Rngs(1))
    fox = build('gate_bias=1.0')
    path = pj.make('path(rank=4, forget=True, gate_scaled=False)', **sizes)
    ours, theirs = fox.parts[0], path.parts[0]
    ours.kernel[...] *= 20.0
    theirs.gate_kernel[...], theirs.gate_bias[...] = ours.kernel[...], ours.bias[...]
    theirs.beta_bias[...] = jnp.full(K, -1e4)
    tok = pj.Tokens.of(length=L)
    found, expected = (run(encoding, *INPUTS, tok, **how) for encoding in (fox, path))
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_the_pro_block_in_numpy():
    """Keys and values, and the result of attention, token by token."""
    encoding = build('pro=True')
    part = encoding.parts[0]
    random = np.random.default_rng(0)
    for name in ('norm_q', 'norm_k', 'norm_out', 'shift', 'gate'):
        variable = getattr(part, name)
        variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
    x = np.asarray(INPUTS[3], np.float64)
    project = {name: random.normal(size=(D, n, H)) for name, n in (('q', N), ('k', K), ('v', K))}
    linear = lambda x: tuple(
        jnp.einsum('bld,dnh->blnh', x, jnp.asarray(w, jnp.float32)) for w in project.values()
    )
    tok = pj.Tokens.of(length=L)
    rows = jnp.pad(INPUTS[3], ((0, 0), (1, 0), (0, 0)))
    found = encoding.qkv(rows, linear, tok)

    plain = {name: np.einsum('bld,dnh->blnh', x, w) for name, w in project.items()}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    norm = lambda a, w, eps: a / np.sqrt((a**2).mean(-1, keepdims=True) + eps) * np.asarray(w)
    for number, name in enumerate('kv'):
        share, a = sigmoid(np.einsum('bld,dk->blk', x, part.shift[:, number])), plain[name]
        plain[name] = a.copy()
        for i in range(L):
            before = a[:, i - 1] if i else np.zeros_like(a[:, 0])
            s = share[:, i, :, None]
            plain[name][:, i] = s * before + (1 - s) * a[:, i]
    plain['q'] = norm(plain['q'], part.norm_q[...], 1e-5)
    plain['k'] = norm(plain['k'], part.norm_k[...], 1e-5)
    for name, ours in zip('qkv', found):
        np.testing.assert_allclose(ours, plain[name], atol=2e-5)

    out = jnp.asarray(random.normal(size=(B, L, N, H)), jnp.float32)
    *_, tq, _ = encoding.project(*found, tok, tok, rows)
    gate = sigmoid(np.einsum('bld,dnh->blnh', x, part.gate[...]))
    expected = norm(np.asarray(out), part.norm_out[...], 1e-6) * gate
    ours = encoding.rescale(out, jnp.zeros((B, L, N)), tq)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


BLOCK = 8
LONG = draw_inputs((1, 2, 1, 8, 6), 64)


def pruned(arguments, **options):
    """The result and the gradients of a text of 64 tokens in tiles of 8 x 8."""
    encoding = build(arguments, heads=2, kv_heads=1, head_dim=8, model_dim=6)
    tok = pj.Tokens.of(length=64)
    value = lambda *arrays: run(encoding, *arrays, tok, block=BLOCK, **options)
    loss = lambda *arrays: jnp.square(value(*arrays)).sum()
    return value(*LONG), jax.grad(loss, argnums=(0, 1, 2, 3))(*LONG)


@pytest.fixture(scope='module')
def unpruned():
    return pruned('gate_bias=-6.0')


@pytest.mark.parametrize('target', [None, 'interpreter', 'tpu_interpreter'])
def test_pruning_changes_less_than_its_share(unpruned, target):
    """Each gate multiplies by exp(-6), so all but the nearest tiles are left out."""
    if target is None:
        found = pruned('gate_bias=-6.0, prune=-10.0')
    else:
        with made_for(target):
            found = pruned('gate_bias=-6.0, prune=-10.0', implementation='kernel')
    most = 2 * np.exp(-10.0) * float(jnp.abs(LONG[2]).max())
    np.testing.assert_allclose(found[0], unpruned[0], atol=most)
    for ours, theirs in zip(found[1], unpruned[1]):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize('target', [None, 'interpreter', 'tpu_interpreter'])
def test_tiles_that_are_left_out_are_not_read(target):
    """Values of the first half are NaN, and the last queries need the nearest tiles alone."""
    q, k, v, x = LONG
    v = v.at[:, :32].set(jnp.nan)
    tok = pj.Tokens.of(length=64)
    encoding = build('gate_bias=-6.0, prune=-10.0', heads=2, kv_heads=1, head_dim=8, model_dim=6)
    found = []
    for each in (encoding, build('gate_bias=-6.0', heads=2, kv_heads=1, head_dim=8, model_dim=6)):
        if target is None:
            found.append(run(each, q, k, v, x, tok, block=BLOCK))
        else:
            with made_for(target):
                found.append(run(each, q, k, v, x, tok, block=BLOCK, implementation='kernel'))
    assert jnp.isfinite(found[0][:, 56:]).all() and jnp.isnan(found[1][:, 56:]).all()


@pytest.mark.parametrize('gate, kept', [(-20.0, True), (-32.0, False)])
def test_the_bound_holds_for_keys_that_the_query_prefers(gate, kept):
    """Logits of far keys are 8 and those of near keys -8. With gates of exp(-20) the far keys have
    exp(-4) of the weights and must stay, though the gates alone lie far below the share; with gates
    of exp(-32) they have exp(-16), and are left out.
    """
    encoding = build(f'gate_bias={gate}, prune=-10.0', heads=1, kv_heads=1, head_dim=4)
    far = jnp.arange(16) < 8
    q = jnp.full((1, 16, 1, 4), 2.0)
    k = jnp.where(far, 2.0, -2.0)[None, :, None, None] * jnp.ones((1, 16, 1, 4))
    v = jnp.broadcast_to(far[None, :, None, None], (1, 16, 1, 4)).astype(jnp.float32)
    tok = pj.Tokens.of(length=16)
    mass = run(encoding, q, k, v, jnp.zeros((1, 16, D)), tok, block=8)[0, 8:, 0, 0]
    assert (float(mass.max()) > 0) == kept
    if kept:
        assert float(mass[0]) == pytest.approx(np.exp(16 + gate), rel=0.1)


def test_the_last_tile_of_a_padded_text_is_left_out_too():
    """60 tokens in tiles of 8: four padding tokens of the last tile keep no other tile alive."""
    encoding = build('gate_bias=-32.0, prune=-10.0', heads=1, kv_heads=1, head_dim=4)
    far = (jnp.arange(60) < 56).astype(jnp.float32)
    v = jnp.broadcast_to(far[None, :, None, None], (1, 60, 1, 4))
    tok = pj.Tokens.of(length=60)
    zero = jnp.zeros((1, 60, 1, 4))
    found = run(encoding, zero, zero, v, jnp.zeros((1, 60, D)), tok, block=8)
    assert float(found[0, 56:].max()) == 0.0


def count(arguments):
    encoding = build(arguments, heads=2, kv_heads=1, head_dim=8, model_dim=6)
    tok = pj.Tokens.of(length=64)
    q, k, _, tq, tk = encoding.project(*LONG[:3], tok, tok, LONG[3])
    return tiles_needed(encoding, q, k, tq, tk, BLOCK)[0]


def test_tiles_that_are_left_out():
    """Eight gates of exp(-6) reach -10 - 2 U - ln 64 for U <= 16 behind one more tile."""
    diagonals = lambda needed: [int(jnp.diagonal(needed, -d).sum()) for d in range(8)]
    closed = [diagonals(head) for head in count('gate_bias=-6.0, prune=-10.0')]
    for head in closed:
        assert head[0] == 8  # a query needs its own tile
        assert head[1] == 7 and head[7] == 0
    everything = count('gate_bias=40.0, prune=-10.0')
    assert diagonals(everything[0]) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_padding_needs_no_tiles():
    """Rows of padding at the end of a text keep no tile alive."""
    encoding = build('gate_bias=-6.0, prune=-10.0', heads=2, kv_heads=1, head_dim=8, model_dim=6)
    tok = pj.Tokens.of(valid=jnp.arange(64)[None] < 60)
    q, k, _, tq, tk = encoding.project(*LONG[:3], tok, tok, LONG[3])
    found = tiles_needed(encoding, q, k, tq, tk, BLOCK)[0]
    np.testing.assert_array_equal(found, count('gate_bias=-6.0, prune=-10.0'))


def test_a_cached_prefix_is_not_pruned():
    encoding = build('prune=-10.0')
    tok = pj.Tokens.of(index=[[7]])
    *_, tq, _ = encoding.project(*(a[:, :1] for a in INPUTS[:3]), tok, tok, INPUTS[3][:, :1])
    assert jnp.isinf(tq.feats['fox_needed']).all()


def test_gates_that_are_nan_are_refused():
    q, k, v, x = INPUTS
    wrong = x.at[1, 3].set(jnp.nan)
    with pytest.raises(
        ValueError, match='gate of token 3 of row 1 is NaN in head 0.*between 0 and 1'
    ):
        build().project(q, k, v, tok := pj.Tokens.of(length=L), tok, wrong)
    tok = pj.Tokens.of(valid=jnp.ones((B, L), bool).at[1, 3].set(False))  # padding has no gate
    build().project(q, k, v, tok, tok, wrong)
    layer = pj.Attention('fox()', D, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='gate of token 3 of row 1 is NaN'):
        layer(wrong)


def test_refused_uses():
    tok = pj.Tokens.of(length=L)
    with pytest.raises(ValueError, match='one token per key: 21 keys, input: none'):
        build().project(*INPUTS[:3], tok, tok)

"""The kernel for GPUs of Hopper, here interpreted, is attention by blocks, and its doors are those
of the encodings.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from benchmarks import kernel_table
from posenc_jax.attention.kernels.call import Call
from posenc_jax.attention.kernels.doors import KEY, QUERY, Read
from posenc_jax.attention.kernels.hopper import KEYS, QUERIES, make_door
from posenc_jax.attention.kernels.sizes import NoKernelError
from posenc_jax.attention.kernels.visits import plan_apart
from posenc_jax.attention.tiles import Blocks, Plan
from posenc_jax.base.targets import made_for
from posenc_jax.protocol.capabilities import first_carry, prepared

WIDTH, HEADS = 64, 2
LENGTH = 4 * KEYS
# The masks and the biases that the kernel has.
SPECS = (
    'nope()', 'alibi()', 'alibi_symmetric()', 'bam()', 'document()',
    'duo_attention(sink=4, recent=100)', 'full()',
    'kerple()', 'kerple(kernel="power")', 'prefix(length=3)', 'rope_alibi_harmonic()', 'soft_cap()',
    'ssmax()', 'window(size=100)', 'alibi() | window(size=150)',
)  # fmt: skip
PACKED = dict(
    segment=[[0] * 200 + [1] * (LENGTH - 200)], valid=[[True] * 410 + [False] * (LENGTH - 410)]
)


def made(spec: str, heads: int = HEADS, width: int = WIDTH):
    sizes = dict(head_dim=width, model_dim=heads * width, train_len=LENGTH)
    return prepared(pj.make(spec, causal=True, heads=heads, rngs=nnx.Rngs(0), **sizes))


def drawn(*shape, dtype=jnp.bfloat16):
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=shape), dtype) for _ in 'qkv']


def attention(encoding, q, k, v, tok, how, **options):
    return pj.attend(
        encoding, q, k, v, tok, tok, implementation=how, applied=pj.TOKEN_STAGE, **options
    )


@pytest.mark.full_where(condition=lambda spec: spec not in SPECS[1::4])
@pytest.mark.parametrize('spec', SPECS)
def test_a_door_on_values_is_the_door(spec):
    """Numbers of a tile that is on the diagonal, and of the full tiles the last one."""
    encoding, tok = made(spec), pj.Tokens.of(**PACKED)
    graphdef, params, constants = nnx.split(encoding, nnx.Param, ...)
    q, k, v = drawn(1, LENGTH, HEADS, WIDTH)
    blocks = Blocks(2 * QUERIES, 1), Blocks(KEYS, 1), Blocks(KEYS, 1)
    plan, head, first = Plan(graphdef, *blocks, (), target='cuda'), 1, 3 * QUERIES
    with made_for('cuda'):
        call = Call.of(plan, params, constants, q, k, v, tok, tok)
        apart = plan_apart(plan, encoding, tok, tok)
        doors = [make_door(tile, call) for tile in (plan, apart) if tile is not None]
    trees = ('', call.encoding), (QUERY, call.queries[-1]), (KEY, call.keys[-1])
    leaves = [(axis, leaf) for axis, tree in trees for leaf in jax.tree.leaves(tree)]
    s = jnp.linspace(-3, 3, QUERIES * KEYS).reshape(QUERIES, KEYS)
    tq, tk = tok.slice(first, QUERIES), tok.slice(0, KEYS)
    shape = (1, HEADS, QUERIES, KEYS)
    z = jnp.zeros((1, HEADS, QUERIES, 1)), jnp.zeros((1, HEADS, KEYS, 1))
    mask = encoding.mask(tq, tk)
    mask = tk.valid[:, None, None] if mask is None else mask & tk.valid[:, None, None]
    carry = first_carry(encoding, z[0], tq)
    logits = encoding.logits(jnp.broadcast_to(s, shape), *z, tq, tk, mask, carry)[0]
    for door in doors:

        def leaf(number, door=door):
            if number == door.tile:
                return s
            axis, own = leaves[number]
            if not axis:
                a = own.array[(*(head % n for n in own.array.shape[:-2]), 0, 0)]
            else:
                a = own.array[0, head % own.array.shape[1], 0]
                a = a[first : first + QUERIES] if axis == QUERY else a[:KEYS]
            return a

        read = Read(
            {QUERY: QUERIES, KEY: KEYS}, leaf, lambda number, axis, leaf=leaf: leaf(number)[0]
        )
        found, *seen = (
            read.spread(read(value), value.axes, QUERY + KEY) for value in door.results if value
        )
        np.testing.assert_allclose(found, logits[0, head], atol=2e-5)
        for a in seen:
            whole = jnp.broadcast_to(mask, shape)[0, head]
            np.testing.assert_array_equal(a, whole)


CASES = {  # spec, tokens, heads, key heads
    'a number of each pair, two blocks of queries': ('alibi()', dict(length=130), 1, 1),
    'packed, padded, grouped': ('kerple()', PACKED, 2, 1),
    'a mask that is no triangle': ('window(size=100)', PACKED, 1, 1),
}


@pytest.mark.full_where(
    condition=lambda case: case != 'a number of each pair, two blocks of queries'
)
@pytest.mark.parametrize('case', CASES)
def test_results_are_those_of_blocks(case):
    spec, text, heads, kv_heads = CASES[case]
    tok, encoding = pj.Tokens.of(**text), made(spec, heads)
    q, k, v = drawn(1, tok.length, heads, WIDTH)
    k, v = k[:, :, :kv_heads], v[:, :, :kv_heads]
    expected = attention(encoding, q, k, v, tok, 'blocked', return_lse=True)
    with made_for('interpreter'):
        found = attention(encoding, q, k, v, tok, 'hopper', return_lse=True)
    here = slice(None) if tok.valid is None else tok.valid[0]
    for a, b, most in zip(found, expected, (1e-2, 1e-5)):
        a, b = (np.asarray(x, np.float32)[:, here] for x in (a, b))
        np.testing.assert_allclose(a, b, atol=most, rtol=1e-6)


@pytest.mark.full
def test_gradients_are_those_of_the_other_kernels():
    encoding, tok = made('kerple()', 1), pj.Tokens.of(length=KEYS)
    graphdef, state = nnx.split(encoding)

    def loss(state, q, k, v, how):
        out = attention(nnx.merge(graphdef, state), q, k, v, tok, how)
        return (out.astype(jnp.float32) * jnp.cos(jnp.arange(WIDTH))).sum()

    arrays = state, *drawn(1, KEYS, 1, WIDTH)
    with made_for('interpreter'):
        found, expected = (
            jax.grad(loss, (0, 1, 2, 3))(*arrays, how) for how in ('hopper', 'kernel')
        )
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-2 * max(1, abs(b).max()))


REFUSED = {
    'another device': ('nope()', dict(device='sm_80'), 'runs on sm_90, and this is sm_80'),
    'float32': ('nope()', dict(dtype=jnp.float32), 'needs bfloat16 or float16, got float32'),
    'narrow heads': ('nope()', dict(width=32), 'heads and values of one width, 64 or 128, got 32'),
    'a carry': ('fox()', {}, 'classes none and bias, and fox.* of the class carry'),
    'a look-up': ('t5_rpe()', {}, 'of the class look-up'),
    'products': ('sandwich()', {}, 'of the class products'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_it_does_not_compute_is_one_line(case):
    spec, changes, words = REFUSED[case]
    usual = dict(device='sm_90', dtype=jnp.bfloat16, width=WIDTH) | changes
    q, k, v = drawn(1, 256, HEADS, usual['width'], dtype=usual['dtype'])
    encoding = made(spec, width=usual['width'])
    projected = encoding.project(q, k, v, *[pj.Tokens.of(length=256)] * 2, jnp.zeros((1, 256, 128)))
    with made_for('cuda', usual['device']), pytest.raises(NoKernelError, match=words) as error:
        jax.eval_shape(lambda: attention(encoding, *projected[:3], projected[3], 'hopper'))
    assert str(error.value).startswith("attend: implementation='hopper' ")
    assert '\n' not in str(error.value) and "'blocked'" in str(error.value)


def test_a_tpu_is_named():
    q = jax.ShapeDtypeStruct((1, 256, HEADS, WIDTH), jnp.float16)
    run = lambda q: attention(made('alibi()'), q, q, q, pj.Tokens.of(length=256), 'hopper')
    with made_for('tpu', 'v5e'), pytest.raises(NoKernelError, match="'hopper' does not run on tpu"):
        jax.eval_shape(run, q)


def test_another_platform_is_named():
    q, k, v = drawn(1, 256, HEADS, WIDTH)
    with pytest.raises(NoKernelError, match="'hopper' does not run on cpu"):
        attention(made('alibi()'), q, k, v, pj.Tokens.of(length=256), 'hopper')


def test_it_lowers_for_a_gpu():
    sizes = dict(length=512, width=128, dtype=jnp.bfloat16, implementation='hopper', device='sm_90')
    run, arguments = kernel_table.attention('alibi', 'alibi()', 'cuda', False, **sizes)
    lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=('cuda',))
    assert 'mosaic_gpu' in lowered.as_text()

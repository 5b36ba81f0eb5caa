"""JAX's kernel for TPUs, here interpreted, is attention by blocks where it is chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import posenc_jax as pj
from posenc_jax.attention.library import choice as library
from posenc_jax.base.targets import made_for
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import MESH_AXES, make_mesh
from posenc_jax.testing.subject import draw
from tests.attention.ring_test import same

LENGTH, HEADS, KV_HEADS, WIDTH = 128, 4, 2, 64
DOCUMENTS = np.repeat([[0, 1], [0, 0]], 64, axis=1)
PADDED = np.arange(LENGTH)[None] >= np.array([[5], [0]])
TEXTS = {
    'one text': dict(),
    'packed': dict(segment=DOCUMENTS),
    'padded': dict(valid=PADDED),
    'later queries': dict(),
}


def inputs():
    heads = enumerate((HEADS, KV_HEADS, KV_HEADS))
    return [draw(n, 2, LENGTH, count, WIDTH) for n, count in heads]


def loss(encoding, tok, cotangent, queries=None, **options):
    def run(q, k, v):
        out = sharded_attend(encoding, q, k, v, queries or tok, tok, **options)
        real = True if tok.valid is None else tok.valid[..., None, None]
        out = jnp.where(real, out, 0).astype(jnp.float32)
        return (out * cotangent).sum(), out

    return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))


SPECS = [
    *(('nope()', text) for text in TEXTS),
    *(('nope() | full()', text) for text in TEXTS),
    ('window(size=40)', 'packed'),
    ('window(size=40) | full()', 'padded'),
    # Ranks begin anew in a packed document, so these take the sweep there.
    ('window(size=20, aligned=True)', 'one text'),
    ('prefix(length=30)', 'one text'),
    ('prefix(length=30)', 'packed'),
]


@pytest.mark.full
@pytest.mark.parametrize('spec, text', SPECS)
def test_results_and_gradients(spec, text):
    encoding = pj.make(spec, causal=True)
    tok = pj.Tokens.of(length=LENGTH, **TEXTS[text])
    given, cotangent = inputs(), draw(9, 2, LENGTH, HEADS, WIDTH)
    how = {}
    if text == 'later queries':  # the masks of the kernel do not know that they see more keys
        how['queries'] = pj.Tokens.of(index=np.arange(LENGTH)[None] + 3)
    expected = loss(encoding, tok, cotangent, implementation='blocked', **how)(*given)
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    with made_for('interpreter'), jax.set_mesh(mesh):
        program = loss(encoding, tok, cotangent, **how)
        assert 'splash' in str(program.trace(*given).jaxpr)
        found = program(*given)
    same(found, expected)


@pytest.mark.full_but_one
@pytest.mark.parametrize('dtype, width', [('float32', 64), ('bfloat16', 128), ('bfloat16', 256)])
def test_it_lowers_inside_a_mesh(dtype, width):
    mesh = AbstractMesh((2, 1, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    tok = pj.Tokens.of(segment=DOCUMENTS)
    given = [jax.ShapeDtypeStruct((*a.shape[:-1], width), dtype) for a in inputs()]
    with made_for('tpu'), jax.sharding.use_abstract_mesh(mesh):
        traced = loss(pj.make('nope()', causal=True), tok, 1.0).trace(*given)
        text = traced.lower(lowering_platforms=('tpu',)).as_text()
    names = re.findall(r'name = "(splash_\w+)"', text)
    passes = [re.sub('.*_(fwd|dq|dkv)_.*', r'\1', name) for name in names]
    assert sorted(passes) == ['dkv', 'dq', 'fwd'], names


@pytest.mark.parametrize(
    'change, reason',
    [
        (dict(spec='alibi()'), "alibi opens the door 'logits'"),
        (dict(spec='nar()'), "the mask of nar reads 'pos' of tokens"),
        (dict(dtype=jnp.float16), 'it takes float32 or bfloat16, not float16'),
        (dict(length=96), 'queries must be a multiple of 128, got 96'),
        (dict(width=80), 'head width must be a multiple of 64, got 80'),
        (dict(keys=256), 'its masks need queries that are the keys, got 128 and 256'),
        (dict(), 'several devices need jax.shard_map'),
    ],
)
def test_what_it_refuses(change, reason):
    given = dict(spec='nope()', dtype=jnp.float32, length=LENGTH, width=WIDTH) | change
    shape = lambda length: jax.ShapeDtypeStruct((1, length, 2, given['width']), given['dtype'])
    q, k = shape(given['length']), shape(given.get('keys', given['length']))
    sizes = dict(heads=2, head_dim=WIDTH, model_dim=2 * WIDTH)
    encoding = pj.make(given['spec'], causal=True, rngs=nnx.Rngs(0), **sizes)
    with made_for('tpu'):
        assert reason in library.refusal(encoding, q, k, k, pj.Tokens.of(length=k.shape[1]))


def test_a_cpu_does_not_choose_it():
    encoding, (q, k, v) = pj.make('nope()', causal=True), inputs()
    reason = library.refusal(encoding, q, k, v, pj.Tokens.of(length=LENGTH))
    assert reason == "JAX has no kernel for the platform 'cpu'"
    tok = pj.Tokens.of(length=LENGTH)
    assert 'splash' not in str(loss(encoding, tok, 1.0).trace(*inputs()).jaxpr)

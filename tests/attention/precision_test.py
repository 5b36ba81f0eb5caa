"""Products have the precision that is set where attention or a model is called, forward and
backward.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.lax import Precision
from jaxlib.mlir import ir
from jaxlib.triton import dialect

import posenc_jax as pj
from posenc_jax.attention.kernels.program import at_any_depth
from posenc_jax.base import targets
from posenc_jax.base.targets import made_for
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.testing.subject import draw

LENGTH = 20


def precisions(function, *arguments):
    """Those of all products in the gradient of a function, which JAX takes outside of any scope."""
    traced = jax.make_jaxpr(jax.grad(function))(*arguments)
    names = 'dot_general', 'conv_general_dilated'
    found = [e.params['precision'] for e in at_any_depth(traced.eqns) if e.primitive.name in names]
    assert found
    return set(found)


def attention(q, implementation, dtype, precision):
    tok = pj.Tokens.of(length=LENGTH)
    encoding = pj.make('alibi()', heads=2, head_dim=16, causal=True)

    @jax.jit  # whose gradient is traced when the scope has ended
    def run(q):
        with jax.default_matmul_precision(precision):
            q = q.astype(dtype)
            return pj.attend(encoding, q, q, q, tok, tok, implementation=implementation)

    return run(q).astype(jnp.float32).sum()


@pytest.mark.parametrize('implementation', ['dense', 'blocked', 'kernel'])
def test_the_backward_pass_has_the_precision_of_the_call(implementation):
    q = draw(0, 1, LENGTH, 2, 16)
    run = lambda dtype, precision: functools.partial(
        attention, implementation=implementation, dtype=dtype, precision=precision
    )
    with made_for('interpreter'):
        highest = {(Precision.HIGHEST, Precision.HIGHEST)}
        assert precisions(run('float32', 'highest'), q) == highest
        assert precisions(run('float32', None), q) == {None}
        # The compiler of kernels for a TPU refuses another precision for bfloat16.
        assert precisions(run('bfloat16', 'highest'), q) == {(Precision.DEFAULT,) * 2}


@pytest.mark.parametrize(
    'kind, fields',
    [
        ('decoder', dict(qk_norm='head', mlp='swiglu')),
        ('encoder_decoder', dict(source_size=5, source_len=LENGTH)),
    ],
)
def test_a_model_has_the_precision_of_its_config(kind, fields):
    sizes = dict(vocab_size=7, train_len=LENGTH, layers=1, width=32, heads=2, kind=kind)
    source = jnp.zeros((1, LENGTH), int)

    def run(precision, params):
        cfg = TransformerConfig(**sizes, encoding='alibi()', precision=precision, **fields)
        model = Transformer(cfg, rngs=nnx.Rngs(0))
        nnx.update(model, params)
        read = model.encoded(source) if kind == 'encoder_decoder' else None
        return model(source, source=read).sum()

    cfg = TransformerConfig(**sizes, encoding='alibi()', **fields)
    params = nnx.state(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param)
    highest = {(Precision.HIGHEST, Precision.HIGHEST)}
    assert precisions(functools.partial(run, 'highest'), params) == highest
    assert None in precisions(functools.partial(run, ''), params)


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'higest'; did you mean 'highest'"):
        TransformerConfig(
            vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='rope()',
            precision='higest',
        )  # fmt: skip


def test_a_kernel_of_a_tpu_has_two_precisions():
    q, tok = jax.ShapeDtypeStruct((1, 128, 2, 16), 'float32'), pj.Tokens.of(length=128)
    encoding = pj.make('alibi()', heads=2, causal=True)
    run = lambda q: pj.attend(encoding, q, q, q, tok, tok, implementation='kernel')
    message = "with the precision 'default' or 'highest', got 'high'; use .*'highest'"
    with made_for('tpu'), jax.default_matmul_precision('high'):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(run, q)
        jax.eval_shape(run, jax.ShapeDtypeStruct(q.shape, 'bfloat16'))


@pytest.mark.parametrize(
    'platform, device, precision, words',
    [
        ('cuda', 'sm_90', None, 'TensorFloat-32'),
        ('cuda', 'sm_80', 'high', 'TensorFloat-32'),
        ('cuda', 'sm_70', None, None),
        ('cuda', 'sm_90', 'highest', None),
        ('cuda', 'sm_90', 'F32_F32_F32', None),
        ('tpu', 'v5e', None, 'bfloat16'),
        ('tpu', 'v5e', 'high', 'three products of bfloat16'),
        ('cpu', None, None, None),
    ],
)
def test_what_products_of_float32_are_computed_in(platform, device, precision, words):
    with made_for(platform, device):
        found = targets.float32_products(precision)
    assert found is None if words is None else found.startswith(words)


@pytest.mark.full
@pytest.mark.parametrize('precision, products', [(None, 'tf32'), ('high', 'tf32'), ('highest', '')])
def test_the_products_of_the_kernels_of_a_gpu(precision, products):
    """In the language of the compiler of these kernels, full precision has no name."""
    encoding, tok = pj.make('alibi()', heads=2, causal=True), pj.Tokens.of(length=128)
    q = jax.ShapeDtypeStruct((1, 128, 2, 64), 'float32')
    kernels = []

    def run(q):
        with jax.default_matmul_precision(precision):
            return pj.attend(encoding, q, q, q, tok, tok, implementation='kernel').sum()

    def collect(operation):
        if 'mhlo.backend_config' in operation.attributes:
            kernels.append(operation.attributes['mhlo.backend_config']['ir'].value_bytes)
        return ir.WalkResult.ADVANCE

    with made_for('cuda'):
        program = jax.jit(jax.grad(run)).trace(q).lower(lowering_platforms=('cuda',))
    program.compiler_ir().operation.walk(collect)
    found = []
    for kernel in kernels:
        with ir.Context() as context:
            dialect.register_dialect(context)
            text = str(ir.Module.parse(kernel))
        found += re.findall(r'tt\.dot [^:]*', text)
    # Forward, queries and keys, each for tiles with a mask and for full ones.
    assert len(kernels) == 3 and len(found) == 2 * (2 + 3 + 4)
    named = {''.join(re.findall(r'inputPrecision = (\w+)', line)) for line in found}
    assert named == {products}

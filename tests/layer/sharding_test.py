"""A model on eight emulated devices is the model on one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.sharding import (
    active_mesh,
    constrain,
    make_mesh,
    param_shardings,
    spec_of,
    split_cpu,
)
from posenc_jax.protocol.tokens import Tokens

BASE = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=4, head_dim=8, kv_heads=2)


@pytest.fixture(scope='module')
def mesh():
    return make_mesh(1, 2, 2, 2, devices=jax.devices()[:8])


def loss_and_gradients(graphdef):
    def loss(params, rest, tokens, tok):
        logits = nnx.merge(graphdef, params, rest)(tokens, tok)
        return -(
            jax.nn.log_softmax(logits)[:, :-1] * jax.nn.one_hot(tokens[:, 1:], 11)
        ).mean(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.full_where(condition=lambda spec, extra: 'toy_table' not in spec)
@pytest.mark.parametrize(
    'spec, extra',
    [
        (
            'toy_table() | toy_gate() | toy_shift() | toy_sink()',
            dict(mlp='swiglu', norm='layernorm', tie=False),
        ),
        ('toy_path()', dict(implementation='blocked', block=4)),
        ('', dict(pattern=('alibi()', 'toy_slope()'), remat='full')),
        ('alibi()', dict(qk_norm='width', norm_place='both', mlp='geglu', output_cap=2.0)),
        (
            'deberta(max_distance=4, share_att_key=True)',
            dict(share='model', bias='qkv', head_norm=True),
        ),
    ],
)
def test_logits_and_gradients_equal_those_of_one_device(toys, mesh, spec, extra):
    model = Transformer(TransformerConfig(encoding=spec, **BASE, **extra), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    tokens = jax.random.randint(jax.random.key(1), (4, 16), 0, 11)
    valid = jnp.arange(16)[None] >= jnp.array([0, 3, 0, 5])[:, None]
    tok = Tokens.of(valid=valid)
    (loss, logits), grads = loss_and_gradients(graphdef)(params, rest, tokens, tok)
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        (loss8, logits8), grads8 = loss_and_gradients(graphdef)(
            place(params), place(rest), tokens, tok
        )
    assert len(logits8.sharding.device_set) == 8
    np.testing.assert_allclose(loss8, loss, atol=1e-5)
    np.testing.assert_allclose(logits8, logits, atol=1e-5)
    for one, eight in zip(jax.tree.leaves(grads), jax.tree.leaves(grads8), strict=True):
        np.testing.assert_allclose(eight, one, atol=1e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'rows, count, variables, expected',
    [
        (6, 0, {}, 'the most cores that divide 6'),
        (6, 3, {}, '3'),
        (6, 0, {'JAX_NUM_CPU_DEVICES': '5'}, '5'),
        (6, 0, {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}, '4'),
    ],
)
def test_a_cpu_counts_as_several_devices(rows, count, variables, expected):
    code = (
        f'from posenc_jax.layer.sharding import split_cpu; split_cpu({rows}, {count}); import '
        'jax; print(jax.device_count())'
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES')
    }
    found = subprocess.run(
        [sys.executable, '-c', code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    if not count and not variables:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        expected = str(max(n for n in range(1, cores + 1) if rows % n == 0))
    assert found.stdout.strip() == expected


@pytest.mark.parametrize('count, given, expected', [(1, '', ''), (64, '', '256'), (64, '9', '9')])
def test_more_devices_than_cores_get_more_threads(monkeypatch, count, given, expected):
    monkeypatch.setenv('PJRT_NPROC', given)
    if not given:
        monkeypatch.delenv('PJRT_NPROC')
    monkeypatch.setattr(jax.config, 'update', lambda *setting: None)
    split_cpu(1, count)
    assert os.environ.get('PJRT_NPROC', '') == expected


def test_devices_that_are_in_use_cannot_be_split():
    here = jax.local_device_count()
    split_cpu(6)
    assert jax.local_device_count() == here
    with pytest.raises(
        ValueError, match=f'{here + 1} CPU devices asked for, but JAX runs already, with {here}'
    ):
        split_cpu(6, here + 1)


def test_generation_equals_that_of_one_device(toys, mesh):
    model = Transformer(
        TransformerConfig(encoding='toy_gate() | alibi()', **BASE), rngs=nnx.Rngs(0)
    )
    prompts = jax.random.randint(jax.random.key(1), (4, 6), 0, 11)
    expected = generate(model, prompts, max_new_tokens=5, temperature=0.0)
    graphdef, state = nnx.split(model)
    with jax.set_mesh(mesh):
        sharded = nnx.merge(graphdef, jax.device_put(state, param_shardings(state, mesh)))
        np.testing.assert_array_equal(
            generate(sharded, prompts, max_new_tokens=5, temperature=0.0), expected
        )


def test_parameters_are_cut_by_their_roles(toys, mesh):
    model = Transformer(
        TransformerConfig(encoding='toy_slope() | toy_path()', **BASE), rngs=nnx.Rngs(0)
    )
    shardings = param_shardings(nnx.state(model), mesh)
    specs = {'/'.join(map(str, path)): s.spec for path, s in nnx.to_flat_state(shardings)}
    assert specs['embedding'] == PartitionSpec(None, 'fsdp')
    assert specs['blocks/0/attention/w_q'] == PartitionSpec(None, 'fsdp', 'tensor', None)
    assert specs['blocks/0/mlp/w_out'] == PartitionSpec(None, 'tensor', 'fsdp')
    assert specs['blocks/0/encodings/0/w'] == PartitionSpec(None, None, 'fsdp', 'tensor', None)
    assert specs['shared/0/slope'] == PartitionSpec('tensor')


def evaluated(mesh, batch=4, length=8, **sizes):
    cfg = TransformerConfig(**{**BASE, 'encoding': 'alibi()', **sizes})
    tokens = jnp.zeros((batch, length), jnp.int32)
    with jax.set_mesh(mesh):
        jax.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))(tokens))


@pytest.mark.parametrize(
    'sizes, message',
    [
        (
            dict(heads=3, kv_heads=3),
            r'3 query heads cannot be cut into 2 parts; of 8 .*, mesh.tensor can be 1(?! or)',
        ),
        (dict(kv_heads=1), '1 key heads cannot be cut into 2 parts'),
        (
            dict(batch=3),
            r'queries of shape \(3, 8, 4, 8\): 3 .* mesh.data x mesh.fsdp can be 1; .* is 4',
        ),
        (dict(length=7), '7 cannot be cut into 2 parts; .* mesh.sequence can be 1; the .* is 8'),
        (
            dict(length=36, mesh=dict(data=1, sequence=8)),
            'cut into 8 parts; of 8 devices, mesh.sequence can be 1, 2 or 4; the nearest .* is 40',
        ),
    ],
)
def test_sizes_the_mesh_does_not_divide_are_errors_with_the_numbers(mesh, sizes, message):
    axes = sizes.get('mesh')
    own = make_mesh(**axes, devices=jax.devices()[:8]) if axes else mesh
    evaluated(mesh)
    with pytest.raises(ValueError, match=message):
        evaluated(**{**sizes, 'mesh': own})


def test_parameters_the_mesh_does_not_divide_are_errors_with_the_numbers(mesh):
    cfg = TransformerConfig(**{**BASE, 'encoding': 'alibi()', 'width': 15})
    state = nnx.state(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param)
    message = r'w_k.*15 cannot .* 2 parts; .* mesh.fsdp can be 1; .* is 16'
    with pytest.raises(ValueError, match=message):
        param_shardings(state, mesh)


def test_make_mesh_fills_the_data_axis():
    sizes = dict(data=2, fsdp=2, tensor=2, sequence=1)
    assert dict(make_mesh(-1, 2, 2, devices=jax.devices()[:8]).shape) == sizes


@pytest.mark.parametrize(
    'sizes, message',
    [
        ((-1, 3, 2), '= 6 does not divide 8 devices; it can be 1, 2, 4 or 8'),
        ((3, 2), 'needs 6 devices, there are 8; use mesh.data=4'),
        ((2, 3), 'there are 8; tensor x fsdp x sequence can be 1, 2 or 4'),
        ((1, 0), 'must be positive'),
    ],
)
def test_make_mesh_checks_the_product(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(*sizes, devices=jax.devices()[:8])


def test_nothing_is_constrained_without_a_mesh():
    assert active_mesh() is None
    x = jnp.ones((2, 3))
    assert constrain(x, 'batch', None) is x
    assert spec_of(('width', 'heads'), 3) == PartitionSpec(None, 'fsdp', 'tensor')

"""Generation on a mesh: the tokens and logits of one device; no device holds the whole cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding import generate as generation
from posenc_jax.lab.decoding.constant_cache import ConstantCache
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.generate import pad_left
from posenc_jax.lab.decoding.recomputed import Recomputed
from posenc_jax.lab.evaluate.generator import generator
from posenc_jax.layer.sharding import make_mesh, placed
from posenc_jax.protocol.tokens import Tokens
from tests.small_models import small_model

CUT = dict(data=2, tensor=2, sequence=2)
LM_INFINITE = 'lm_infinite(encoding=rope(), n_global=1, n_local=3)'


def model_of(spec, layers=1):
    sizes = dict(vocab_size=11, train_len=8, layers=layers, width=16, heads=4, kv_heads=2)
    return small_model(encoding=spec, **sizes)


@pytest.mark.full_where(condition=lambda spec, decoding, axes: spec != 'cope()')
@pytest.mark.parametrize(
    'spec, decoding, axes',
    [
        ('cope()', None, CUT),
        ('rope() | alibi()', None, dict(sequence=8)),
        ('path()', None, CUT),
        ('cable()', None, CUT),
        ('rope(freqs=dynamic_ntk())', Recomputed(), CUT),
        (LM_INFINITE, ConstantCache(4), CUT),
    ],
)
def test_a_mesh_draws_the_tokens_of_one_device(spec, decoding, axes):
    """Three rows of unequal length, which no axis divides."""
    model, rng = model_of(spec, 2 if spec.startswith('rope') else 1), np.random.default_rng(0)
    prompts, valid = pad_left([rng.integers(0, 11, size) for size in (7, 4, 5)])
    asked = dict(valid=valid, max_new_tokens=6, key=jax.random.key(0), decoding=decoding)
    one = generator(model)(prompts, **asked)
    many = generator(model, make_mesh(**axes))(prompts, **asked)
    assert one.shape == (3, 6) and len(set(one.ravel().tolist())) > 3
    np.testing.assert_array_equal(many, one)


@pytest.mark.full
@pytest.mark.parametrize('spec', ['rope()', 'cope()'])
def test_logits_of_a_cut_cache_are_those_of_one_device(spec):
    graphdef, state = nnx.split(model_of(spec))
    prompts = jax.random.randint(jax.random.key(0), (2, 8), 0, 11)

    @jax.jit
    def logits(state):
        model = nnx.merge(graphdef, state)
        found, cache = prefill(model, init_cache(model, Tokens.of(length=16)), prompts)
        following, _ = decode_step(model, cache, prompts[:, 0])
        return jnp.concatenate([found, following[:, None]], axis=1)

    expected, mesh = logits(state), make_mesh(**CUT)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(logits(placed(state, mesh)), expected, atol=1e-5)


@pytest.mark.full
def test_no_device_gets_all_keys_of_the_cache():
    graphdef, state = nnx.split(model_of('alibi()'))
    plan = generation._Static(graphdef, 192, 0.0, None, None, None)
    prompts, mesh = jnp.zeros((2, 320), jnp.int32), make_mesh(sequence=8)

    def compiled(state):
        arguments = prompts, Tokens.of(length=512), Decoding(), None, None
        return generation._generate.lower(plan, state, *arguments).compile()

    one = compiled(state)
    with jax.set_mesh(mesh):
        many = compiled(placed(state, mesh))
    moved = re.findall(r' = .*f32.* (all-reduce|all-gather|all-to-all)\(', many.as_text())
    assert set(moved) == {'all-reduce'}
    of_one, of_each = (c.memory_analysis().temp_size_in_bytes for c in (one, many))
    assert of_each < of_one / 4

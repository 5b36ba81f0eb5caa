"""Symmetric ALiBi in an encoder: the matrix, and what a reversed sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model import Transformer, TransformerConfig
from tests.golden_files import golden

GOLDEN = golden('alibi_symmetric')


def test_both_sides_have_the_bias_of_the_distance():
    encoding, pos = pj.make('alibi_symmetric()', heads=GOLDEN['heads']), jnp.arange(9)[None]
    bias = np.asarray(encoding.bias(pos, pos)[0])
    for j in (4 - GOLDEN['distance'], 4 + GOLDEN['distance']):
        np.testing.assert_allclose(bias[:, 4, j], GOLDEN['bias'], rtol=1e-6)
    np.testing.assert_array_equal(bias, bias.swapaxes(1, 2))


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding, mirrored',
    [
        ('alibi_symmetric()', True),
        ("alibi(variant='offset')", False),
        ("alibi(variant='half')", False),
        ('rope()', False),
    ],
)
def test_an_encoder_reverses_its_output_with_the_sequence(encoding, mirrored):
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=2, width=16, heads=4, encoding=encoding, kind='encoder'
    )
    model, tokens = (
        Transformer(cfg, rngs=nnx.Rngs(0)),
        jax.random.randint(jax.random.key(1), (2, 12), 0, 7),
    )
    difference = np.abs(model(tokens)[:, ::-1] - model(tokens[:, ::-1])).max()
    assert (difference < 1e-5) == mirrored and (difference > 1e-2) != mirrored, difference


@pytest.mark.parametrize('causal', [True, False])
def test_it_is_alibi(causal):
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 7, 4, 8)) for i in range(3))
    tok = pj.Tokens.of(length=7)
    run = lambda spec: pj.attend(pj.make(spec, heads=4, causal=causal), q, k, v, tok, tok)
    np.testing.assert_array_equal(run('alibi_symmetric()'), run('alibi()'))


def test_no_other_variant_goes_by_this_name():
    with pytest.raises(ValueError, match="no argument 'variant'"):
        pj.make("alibi_symmetric(variant='offset')", heads=4)
    with pytest.raises(
        ValueError, match='alibi_symmetric slopes must be a tuple of heads=4 entries, got'
    ):
        pj.make('alibi_symmetric(slopes=(1.0, 0.5))', heads=4)

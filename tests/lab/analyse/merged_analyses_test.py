"""Analyses that read a text in blocks of queries: batches merge, padding does not count, and memory
grows with the length alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.analyse.attention_entropy import attention_entropy
from posenc_jax.lab.analyse.receptive_field import _fields, receptive_field
from posenc_jax.lab.analyse.rope_usage import _usage, rope_usage
from posenc_jax.lab.analyse.token_distance import token_distance
from tests.lab.analyse.by_hand import ids, model_of, same_model_of

TOKENS = ids(2, 21)
MERGED = {  # analysis -> encoding, options, and results with their tolerances
    rope_usage: ('rope()', {}, dict(count=0, q=1e-5, k=1e-5)),
    attention_entropy: ('alibi()', {}, dict(rows=0, heads=1e-5, relative=1e-5)),
    receptive_field: ('alibi()', {}, dict(erf=5e-6, profile=1e-6)),
    token_distance: (
        'rope()',
        dict(tau=5, block=8),
        dict(queries=0, corr=2e-5, alloc=2e-5, dist=2e-5),
    ),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('analysis', MERGED, ids=lambda analysis: analysis.__name__)
def test_batches_merge_and_padding_does_not_count(analysis):
    encoding, options, results = MERGED[analysis]
    measure = functools.partial(analysis, same_model_of(encoding=encoding), **options)
    whole, merged = measure(TOKENS), measure(TOKENS[:1]).merge(measure(TOKENS[1:]))
    valid = pj.Tokens.of(valid=np.arange(24)[None] >= 3)
    padded = measure(jnp.pad(TOKENS, ((0, 0), (3, 0))), valid)
    for name, error in results.items():
        expected = np.asarray(getattr(whole, name))
        for other in (merged, padded):
            found = np.asarray(getattr(other, name))
            if name == 'profile':  # has an entry for every distance in the padded text
                assert not found[..., 21:].any()
                found = found[..., :21]
            np.testing.assert_allclose(found, expected, atol=error, rtol=0, err_msg=name)


@pytest.mark.full
def test_documents_of_a_receptive_field_do_not_see_each_other():
    model = same_model_of(encoding='alibi()')
    whole = receptive_field(model, TOKENS)
    packed = receptive_field(
        model, TOKENS.reshape(1, 42), pj.Tokens.of(segment=np.arange(42)[None] // 21)
    )
    np.testing.assert_allclose(packed.erf, whole.erf, rtol=1e-6)
    np.testing.assert_allclose(packed.profile[..., :21], whole.profile, atol=1e-6)


shape = jax.ShapeDtypeStruct
LOWERED = {  # analysis -> its program for a model and a length
    'receptive_field': lambda model, length: _fields.lower(
        model, shape((1, length), jnp.int32), None, fixed=(0.05, 64)
    ),
    'rope_usage': lambda model, length: _usage.lower(
        model, shape((1, length), jnp.int32), None, shape((1, length), bool)
    ),
}


@pytest.mark.parametrize('analysis', LOWERED)
def test_memory_grows_with_the_length_and_not_with_its_square(analysis):
    encoding = 'alibi()' if analysis == 'receptive_field' else 'rope()'
    model = model_of(implementation='blocked', block=64, layers=1, encoding=encoding)
    size = lambda length: (
        LOWERED[analysis](model, length).compile().memory_analysis().temp_size_in_bytes
    )
    assert size(1024) < 2.5 * size(512)

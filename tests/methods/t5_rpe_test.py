"""T5's buckets against the published lists and against the formula, and the options that depart
from the default.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.t5_rpe import t5_rpe_bucket, t5_rpe_thresholds
from tests.golden_files import golden_suite


def make(arguments='', heads=4, head_dim=8):
    return pj.make(f't5_rpe({arguments})', heads=heads, head_dim=head_dim)


def bucket_of(distance, **options):
    return t5_rpe_bucket(jnp.asarray(distance)[None], jnp.zeros((1, 1), int), **options)[0, :, 0]


def bucket(case):
    bidirectional = 'key_minus_query' in case
    distance = -np.array(case['key_minus_query']) if bidirectional else case['distance']
    sizes = dict(buckets=case['buckets'], max_distance=case['max_distance'])
    return bucket_of(distance, **sizes, bidirectional=bidirectional)


test_golden = golden_suite('t5_rpe', {'causal.*.bucket': bucket, 'bidirectional.bucket': bucket})


def test_later_keys_share_the_bucket_of_the_query_itself():
    np.testing.assert_array_equal(bucket_of(-np.arange(200)), 0)


@pytest.mark.parametrize(
    'buckets, max_distance', [(32, 128), (16, 64), (7, 100), (2, 9), (32, 17), (64, 100_000)]
)
def test_buckets_follow_the_formula(buckets, max_distance):
    """In float64; distances at which the logarithm is an integer up to rounding are decided exactly
    by the powers.
    """
    n = np.unique(np.r_[np.arange(2000), np.geomspace(2000, 3 * max_distance, 500).astype(int)])
    exact = buckets // 2
    place = np.log(np.maximum(n, 1) / exact) / np.log(max_distance / exact) * (buckets - exact)
    clear = np.abs(place - np.round(place)) > 1e-9
    expected = np.where(n < exact, n, np.minimum(buckets - 1, exact + np.floor(place)))
    found = np.asarray(bucket_of(n, buckets=buckets, max_distance=max_distance))
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert (np.diff(found) >= 0).all()


def test_powers_are_not_rounded():
    assert t5_rpe_thresholds(16, 128).tolist()[7:] == [8, 12, 16, 23, 32, 46, 64, 91]


def test_the_bias_is_a_row_of_the_table_per_head():
    encoding = make()
    pos = jnp.arange(150)[None]
    bias = encoding.bias(pos, pos)
    table = np.asarray(encoding.table[...])
    distance = np.maximum(np.arange(150)[:, None] - np.arange(150), 0)
    expected = table[np.asarray(bucket_of(np.arange(150)))[distance]]
    np.testing.assert_array_equal(bias[0], np.moveaxis(expected, -1, 0))


def attended(encoding):
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 12, 4, 8)) for i in range(3))
    tok = pj.Tokens.of(length=12)
    return pj.attend(encoding, q, k, v, tok, tok), (q, k, v), tok.pos


def test_unscaled_logits_as_in_t5():
    encoding = make('scaled=False, std=1.0')
    ours, (q, k, v), pos = attended(encoding)
    s = jnp.einsum('btnh,bsnh->bnts', q, k) + encoding.bias(pos, pos)
    expected = jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(s), v)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_far_distances_share_one_bias():
    encoding = make()
    bias = encoding.bias(jnp.array([[10_000_000]]), jnp.array([[0, 5_000_000, 9_999_800]]))
    last = np.asarray(encoding.table[-1])
    np.testing.assert_array_equal(bias[0, :, 0], np.repeat(last[:, None], 3, axis=1))

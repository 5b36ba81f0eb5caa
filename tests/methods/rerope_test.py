"""ReRoPE and leaky ReRoPE: the released distances and factor, that they are Self-Extend with
`log_length`, decoding, limits, errors.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
import posenc_jax.functional as F
from posenc_jax.methods.self_extend import self_extend_distance
from tests.golden_files import golden_suite
from tests.methods.by_distance import WIDTH, logits, qkv, run, softmax
from tests.methods.pair_logits import logits as pair_logits

SIZES = dict(head_dim=WIDTH, train_len=8, causal=True)
LENGTH = 19
FORMS = {
    'rerope(encoding=rope(), local=4{})': dict(group=None, local=4),
    'leaky_rerope(encoding=rope(), factor=3.0, local=4{})': dict(group=3.0, local=4, floor=False),
}


def distances(length, **form):
    pos = jnp.arange(length)[None]
    return np.asarray(self_extend_distance(pos, pos, **form))[0]


def pairs(spec, length):
    """What the class makes of one plane that turns by 1 radian: the distances of all pairs, of
    which none here reaches a full turn, and the factor of all queries.
    """
    part = pj.make(spec, head_dim=2, train_len=8, causal=True)
    arrow = lambda *at: jnp.broadcast_to(jnp.array(at, jnp.float32), (1, length, 1, 2))
    cos, sin = (
        np.asarray(pair_logits(part, arrow(1, 0), k))[0, 0] * 2**0.5
        for k in (arrow(1, 0), arrow(0, 1))
    )
    angle = np.arctan2(sin, cos)
    return np.where(angle < -1e-3, angle + 2 * np.pi, angle), np.hypot(sin, cos)[:, 0]


def far(v):
    return pairs(f'rerope(encoding=rope(), local={v["window"]})', 12)[0][-1]


def leaky(v):
    spec = f'leaky_rerope(encoding=rope(), factor={v["divisor"]}, local={v["window"]})'
    return pairs(spec, max(v['gaps']) + 1)[0][-1][::-1][np.asarray(v['gaps'])]


def factor(_, rank):
    return pairs('rerope(encoding=rope(), train_len=8)', int(rank) + 1)[1][-1]


test_rerope = golden_suite('rerope', {'distances': far, 'factor.*': factor}, atol=2e-6)
test_leaky_rerope = golden_suite('leaky_rerope', {'distances': leaky}, atol=2e-6)


@pytest.mark.parametrize('spec', FORMS)
def test_it_is_the_definition(spec):
    """By the table of distances, with queries of a loop over tokens times the factor."""
    q, k, v = qkv(LENGTH)
    factor = np.array([max(1.0, np.log(i + 1) / np.log(8)) for i in range(LENGTH)], np.float32)
    s = logits(q, k, distances(LENGTH, **FORMS[spec])) * factor[:, None]
    found = run(pj.make(spec.format(''), **SIZES), pj.Tokens.of(length=LENGTH), q, k, v)
    np.testing.assert_allclose(found, softmax(s, v), atol=3e-6)


def test_extensions_and_default_windows():
    part = pj.extend('rope() | causal()', 'leaky_rerope()', head_dim=8, train_len=64).parts[0]
    assert (part.group, part.local, part.floor) == (16.0, 16, False)
    assert repr(part) == 'leaky_rerope(encoding=rope())'
    assert pj.make('rerope(encoding=rope())', head_dim=8, train_len=3).local == 1


def test_the_functions_of_distances_by_hand():
    q, k = jnp.array([[11]]), jnp.array([[0, 5, 7, 8, 11]])
    assert F.rerope_distance(q, k, local=4)[0, 0].tolist() == [4, 4, 4, 3, 0]
    found = F.leaky_rerope_distance(q, k, factor=2.0, local=4)
    assert found[0, 0].tolist() == [7.5, 5.0, 4.0, 3.0, 0.0]

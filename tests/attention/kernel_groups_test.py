"""Kernels whose program instances go through the query heads that share a key head."""

import jax
import numpy as np
import pytest

from benchmarks import kernel_table
from posenc_jax.attention.kernels.program import at_any_depth
from posenc_jax.base.targets import INTERPRETED
from posenc_jax.testing.subject import WIDTH, draw
from tests.attention import kernel_test, ring_test

# By heads are: a slope, a parameter, a table; and a carry, or features of keys by query heads, and
# of `path` by key heads too.
BY_HEADS = 'alibi()', 'kerple()', 't5_rpe()', 'cope()', 'fox()', 'cable()', 'path()'
DEFAULT = [
    ('t5_rpe()', 1, 'interpreter'),
    ('t5_rpe()', 2, 'tpu_interpreter'),
    ('fox()', 2, 'interpreter'),
    ('fox()', 1, 'tpu_interpreter'),
]


@pytest.mark.full_where(condition=lambda spec, keys, target: (spec, keys, target) not in DEFAULT)
@pytest.mark.parametrize('target', INTERPRETED)
@pytest.mark.parametrize('keys', [1, 2])
@pytest.mark.parametrize('spec', BY_HEADS)
def test_four_query_heads_on_fewer_key_heads(spec, keys, target, monkeypatch):
    for number, name in enumerate('kv'):
        weights = draw(number + 1, ring_test.MODEL, keys, WIDTH) / 4
        monkeypatch.setitem(ring_test.WEIGHTS, name, weights)
    encoding = kernel_test.example(spec, kv_heads=keys)
    ring_test.same(*kernel_test.both(encoding, target=target))


def written(spec, keys, platform):
    """The shapes that the kernel of keys writes, and the grid of its instances."""
    key = spec.split('(')[0]
    run, arguments = kernel_table.attention(key, spec, platform, backward=True, kv_heads=keys)
    traced = jax.make_jaxpr(run)(*arguments)
    (call,) = (
        equation for equation in at_any_depth(traced.eqns)
        if equation.primitive.name == 'pallas_call'
        and equation.params['name'] == 'attention_backward_keys'
    )  # fmt: skip
    return [a.aval.shape for a in call.outvars], call.params['grid_mapping'].grid


@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
@pytest.mark.parametrize('keys', [1, 2, 4])
def test_gradients_are_summed_over_a_group_in_the_kernel(keys, platform):
    rows, queries, length = kernel_table.ROWS, kernel_table.HEADS, kernel_table.LENGTH
    (*arrays, feature), grid = written('fox()', keys, platform)
    length = arrays[0][2]  # padded to whole blocks
    assert arrays == [(rows, keys, length, kernel_table.WIDTH)] * 2
    assert feature == (rows, queries, 1, length)  # of each query head
    assert grid[:2] == (rows, keys)
    assert np.prod(grid[3:-1], dtype=int) == (queries // keys if platform == 'tpu' else 1)

"""Attention of all queries over keys that stay on their devices is attention on one device."""

import pytest

import posenc_jax as pj
from tests import contract_test
from tests.attention.ring_test import MIXED, TEXTS, compare, mesh_of, one_for_many_devices


@pytest.mark.full_where(condition=lambda spec, axes: spec not in ('cope()', 'alibi()'))
@pytest.mark.parametrize(
    'spec, axes',
    [
        ('cope()', dict(sequence=8)),
        ('alibi()', dict(sequence=8)),
        ('toy_sink()', dict(tensor=2, sequence=4)),
        ('tra()', dict(tensor=2, sequence=4)),
        ('urpe() | window(size=5)', dict(data=2, sequence=4)),
    ],
)
def test_results_and_gradients_equal_those_of_one_device(toys, spec, axes):
    """A carry visits the devices; a window hides the keys of whole devices."""
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    compare(encoding, mesh_of(**axes), [TEXTS['packed']], heads_first=True)


@pytest.mark.full
@contract_test.every_entry
def test_every_encoding(entry):
    """What devices find is joined by log-sum-exps. A carry visits the devices; for other doors the
    representatives stand.
    """
    compare(one_for_many_devices(entry), mesh_of(sequence=8), [MIXED], heads_first=True)

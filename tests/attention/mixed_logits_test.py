"""An encoding whose logits read other heads and keys: one tile has all of them, and whatever would
cut them is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention import tile_sizes
from posenc_jax.base.targets import made_for
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.testing import sequences
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.subject import CONTEXT, HEADS, Subject, moved
from tests.methods.pairs import qkv

LENGTH = 16
TOK = pj.Tokens.of(length=LENGTH)
ARRAYS = tuple(map(jnp.asarray, qkv(LENGTH, HEADS)))


def make(spec='dape_v2(width=4)'):
    return pj.make(spec, causal=True, **CONTEXT)


def attend(**options):
    return pj.attend(make(), *ARRAYS, TOK, TOK, **options)


def test_a_block_with_a_part_of_the_keys_is_refused():
    message = 'dape_v2 reads all keys of a query at once, 16 here, got a block of 8; use block='
    for block in (8, (4, 8)):
        with pytest.raises(ValueError, match=message):
            attend(block=block)


def test_blocks_of_queries_have_all_keys():
    whole = attend(implementation='dense')
    for options in (dict(block=(5, LENGTH)), dict(block=99), dict(implementation='blocked')):
        np.testing.assert_allclose(attend(**options), whole, atol=2e-6)


def test_tiles_of_a_long_text_are_bounded():
    """Also those of the hidden values of a network, which are `width` for each pair."""
    for width, values in ((4, HEADS), (4 * HEADS, 4 * HEADS)):
        encoding = make(f'dape_v2(width={width})')
        sizes = tile_sizes.tile_sizes(encoding, (1, 65536, HEADS, 8), 65536, None, None)
        assert sizes == (2**7 // values, 65536, 65536)
        assert 4 * values * np.prod(sizes[:2]) <= 2**25


def test_a_kernel_is_refused():
    with made_for('cuda'), pytest.raises(ValueError, match='one head, and dape_v2 mixes the heads'):
        attend(implementation='kernel')


def test_a_ring_is_refused():
    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ('x',), axis_types=types, devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec(None, 'x')

    def part(q, k, v):
        tok = pj.Tokens.of(length=q.shape[1])
        return pj.attend(make(), q, k, v, tok, tok, axis_name='x')

    run = jax.shard_map(part, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    message = "dape_v2 reads all keys of a query at once, and along 'x' a device has a part"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, *ARRAYS)


def test_heads_that_are_cut_are_refused():
    mesh = make_mesh(data=1, tensor=2, devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match='dape_v2 mixes the heads, .* 2 parts'):
        jax.eval_shape(lambda *a: sharded_attend(make(), *a, TOK, TOK), *ARRAYS)


def test_a_sequence_that_is_cut_has_all_keys_on_every_device():
    whole = attend(implementation='dense')
    with jax.set_mesh(make_mesh(data=1, sequence=2, devices=jax.devices()[:2])):
        cut = jax.jit(lambda *a: sharded_attend(make(), *a, TOK, TOK))(*ARRAYS)
        text = jax.jit(lambda *a: sharded_attend(make(), *a, TOK, TOK)).lower(*ARRAYS).as_text()
    np.testing.assert_allclose(cut, whole, atol=2e-6)
    assert 'collective_permute' not in text


def test_heads_of_two_encodings_are_refused():
    with pytest.raises(ValueError, match='dape mixes the logits of all heads; chain it behind'):
        make('per_head(first=dape(), second=alibi(), heads_of_first=2)')


class Stated(pj.Encoding):
    """States the trait and mixes nothing."""

    traits = frozenset({'mixes_logits'})

    def logits(self, s, q, k, tq, tk, seen, carry):
        return 0.5 * s, carry


class Unstated(Stated):
    """Mixes heads and does not state it."""

    traits = frozenset()

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s + jnp.roll(s, 1, axis=1), carry


@pytest.mark.parametrize(
    'cls, message', [(Stated, 'mixes_logits is stated'), (Unstated, 'other h')]
)
def test_the_law_of_heads_knows_the_trait(cls, message):
    subject = Subject(lambda seed: moved(pj.make(cls(), causal=True), seed), 'own', None)
    with pytest.raises(BrokenLaw, match=message):
        sequences.heads(subject)

"""Segmented sequences: which tokens are drawn, their true targets and original positions, and the
stretched table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.tasks.language import Language, SegmentedText
from posenc_jax.methods.extend import extend
from posenc_jax.methods.segmented_sequences import (
    segmented_sequences_chunk_ids,
    segmented_sequences_prefix_ids,
    segmented_sequences_table,
)
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.methods.models import model_of, read
from tests.refusals import refused

RNG = np.random.default_rng


def stretched(name, factor):
    return lambda values: segmented_sequences_table(jnp.array(values[name])[:, None], factor)[:, 0]


test_golden = golden_suite('segmented_sequences', rtol=1e-6) | {
    'stretched_4': stretched('table', 4),
    'stretched_3': stretched('short_table', 3),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('factor', [1, 2, 3, 4, 7])
def test_old_rows_stay_exactly_and_the_last_repeats(factor):
    table = jax.random.normal(jax.random.key(0), (13, 5))
    longer = segmented_sequences_table(table, factor)
    assert longer.shape == (13 * factor, 5)
    np.testing.assert_array_equal(longer[::factor], table)
    np.testing.assert_array_equal(longer[12 * factor :], np.tile(table[-1:], (factor, 1)))


def test_places_between_rows_are_exact_in_long_tables():
    table = jnp.arange(8192, dtype=jnp.float32)[:, None] % 2
    share = np.arange(3 * 8192) % 3 / 3
    odd = np.arange(3 * 8192) // 3 % 2
    expected = np.where(odd, 1 - share, share)
    np.testing.assert_allclose(
        segmented_sequences_table(table, 3)[:-3, 0], expected[:-3], atol=1e-6
    )


def test_chunks_are_segments_in_the_order_of_the_text():
    drawn = set()
    for seed in range(60):
        ids = segmented_sequences_chunk_ids(RNG(seed), 24, 12, 4)
        assert len(ids) == 12 and ids.max() < 24 and (np.diff(ids) > 0).all()
        steps = np.diff(ids) - 1
        assert (steps % 4 == 0).all() and (steps[np.arange(11) % 4 != 3] == 0).all()
        drawn.add(tuple(ids[::4] // 4))
    assert len(drawn) == 20  # all choices of 3 segments out of 6


@pytest.mark.parametrize('last', [True, False])
def test_a_prefix_of_single_tokens_before_a_run(last):
    begins, picked = set(), np.zeros(20)
    for seed in range(400):
        ids = segmented_sequences_prefix_ids(RNG(seed), 20, 10, 4, last=last)
        assert len(ids) == 10 and 0 <= ids.min() and ids.max() < 20
        assert (np.diff(ids) > 0).all() and (np.diff(ids[4:]) == 1).all()
        begins.add(int(ids[4]))
        picked[ids[:4]] += 1
    assert begins == ({14} if last else set(range(4, 15)))
    if last:  # uniform over what precedes the run
        error = 4 * (4 / 14 * 10 / 14 / 400) ** 0.5
        np.testing.assert_allclose(picked[:14] / 400, 4 / 14, atol=error)
        assert not picked[14:].any()


def test_taking_everything_is_ordinary_training():
    drawn = (
        segmented_sequences_chunk_ids(RNG(0), 12, 12, 3),
        *(segmented_sequences_prefix_ids(RNG(0), 12, 12, n) for n in (0, 5)),
    )
    assert all(ids.tolist() == list(range(12)) for ids in drawn)
    assert segmented_sequences_prefix_ids(RNG(0), 20, 8, 0).tolist() == list(range(12, 20))
    batch = SegmentedText(source_len=16, segment_len=4).sample(RNG(0), 2, 16)
    assert (batch['positions'] == np.arange(16)).all()
    assert (batch['tokens'][:, 1:] == batch['targets'][:, :-1]).all()


@pytest.mark.parametrize(
    'options', [dict(segment_len=4), dict(prefix_len=3), dict(prefix_len=3, last=False)]
)
def test_targets_are_the_true_next_tokens(options):
    task = SegmentedText(source_len=64, **options)
    stream = np.arange(200, dtype=np.int32)  # the token says where it stands
    batch = task._rows(stream, 16, RNG(0), 6, slice(None))
    np.testing.assert_array_equal(batch['targets'], batch['tokens'] + 1)
    offsets = batch['tokens'] - batch['positions']
    assert (offsets == offsets[:, :1]).all()
    assert (batch['positions'] < 64).all()
    assert batch['loss_mask'].all()
    assert (np.diff(batch['positions'], axis=1) > 1).any(1).all()


def test_evaluation_reads_the_whole_text():
    validation, whole = (
        task.dataset(length=16, batch_size=4, seed=1, split='validation')[0]
        for task in (SegmentedText(source_len=64, segment_len=8), Language())
    )
    np.testing.assert_array_equal(validation['tokens'], whole['tokens'])


@pytest.mark.full
def test_a_model_extended_reads_texts_four_times_as_long():
    """At positions 4 p it is the model it was; it accepts 4 times as many tokens, and refuses
    more.
    """
    model = model_of('learned_absolute(max_len=8, std=1.0)', vocab_size=9, layers=1)
    longer, ids = model.extend('segmented_sequences(factor=4)'), jnp.arange(8)[None]
    expected = read(model, ids)
    spread = pj.Tokens.of(positions=4 * np.arange(8)[None])
    np.testing.assert_allclose(read(longer, ids, spread), expected, atol=1e-6)
    assert np.abs(read(longer, ids) - expected).max() > 1e-2
    assert jax.eval_shape(longer, jnp.zeros((1, 32), jnp.int32)).shape == (1, 32, 9)
    with pytest.raises(ValueError, match='position 32 is not in 0 .. 31'):
        longer(jnp.zeros((1, 33), jnp.int32))
    gradient = jax.eval_shape(nnx.grad(lambda m: m(ids).sum()), longer)
    shapes = [a.shape for a in jax.tree.leaves(gradient['shared'])]
    assert shapes == [(32, 16)]  # the new rows are trained


def test_a_chain_keeps_its_other_parts():
    longer = extend(
        pj.make('learned_absolute(max_len=8) | rope()', model_dim=8, head_dim=8),
        'segmented_sequences(factor=2)',
    )
    assert longer.parts[0].max_len == 16 and longer.parts[1].card.key == 'rope'


def chunked(*sizes):
    return lambda: segmented_sequences_chunk_ids(RNG(0), *sizes)


def behind_a_prefix(length):
    return lambda: segmented_sequences_prefix_ids(RNG(0), 12, 6, length)


def task(**options):
    return lambda: SegmentedText(source_len=16, **options)


def stretch(encoding, factor=2, **sizes):
    return lambda: extend(pj.make(encoding, **sizes), f'segmented_sequences(factor={factor})')


PREFIX = 'prefix_len must lie in 0 .. 5, .* of 6 tokens, got'
WHOLE = 'factor must be an integer of at least 1, got'
test_wrong_input = refused() | {
    'segments of 4 tokens do not divide the 6 tokens of a row': chunked(12, 6, 4),
    'segments of 4 tokens do not divide the 10 tokens of the text': chunked(10, 8, 4),
    'a row takes 1 .. 12 tokens of a text of 12, got 13': chunked(12, 13, 1),
    'segment_len must be at least 1, an integer, got 0': chunked(12, 6, 0),
    'segment_len must be at least 1, an integer, got 1.5': chunked(12, 6, 1.5),
    f'{PREFIX} 6': behind_a_prefix(6),
    f'{PREFIX} -1': behind_a_prefix(-1),
    f'{WHOLE} 0': lambda: segmented_sequences_table(jnp.ones((2, 1)), 0),
    f'{WHOLE} 1.5': lambda: segmented_sequences_table(jnp.ones((2, 1)), 1.5),
    'exactly one of segment_len and prefix_len, got': (task(), task(segment_len=4, prefix_len=4)),
    'give prefix_len': task(segment_len=4, last=False),
    'a row takes 1 .. 16 tokens of a text of 16, got 32': lambda: SegmentedText(
        source_len=16, segment_len=4
    ).width(32),
    'would make a table of 34359738352 rows, .* at most 1 GiB': stretch(
        'learned_absolute(max_len=16)', 2**31 - 1, model_dim=8
    ),
}
NOT_PLAIN = r"stretches learned_absolute\(ids='plain'\), got learned_absolute\(ids='fairseq'\)"
test_other_encodings = refused(error=SpecError) | {
    'segmented_sequences extends one learned_absolute; found 0 in rope': stretch(
        'rope()', head_dim=8
    ),
    NOT_PLAIN: stretch("learned_absolute(max_len=8, ids='fairseq')", model_dim=8),
}

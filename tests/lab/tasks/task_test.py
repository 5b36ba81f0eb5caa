"""What holds for every task: shapes, masks, determinism, resuming, sharding, errors."""

import itertools
import pathlib
import subprocess
import sys
import zlib

import numpy as np
import pytest

from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.tasks.sequences import join_ragged, next_token_batch
from posenc_jax.lab.tasks.task import SPLITS, batch_rng, length_range, shard_rows
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import entries
from tests.lab.tasks.rows import make

CODE = pathlib.Path(__file__).parents[3] / 'posenc_jax' / 'methods'
TASKS = {
    'copy()': (1, 7),
    'copy(symbols=30, ids="coupled")': 5,
    'reverse(ids="plain")': (2, 6),
    'reverse(ids="coupled")': (2, 6),
    'addition()': (1, 5),
    'addition(reverse_output=True, zero_pad=True, ids="coupled")': (1, 5),
    'addition(zero_pad=True, ids="coupled", equal_length=True)': (1, 5),
    'addition(reverse_operands=True, reverse_output=True, zero_pad=True, ids="coupled")': (1, 5),
    'addition(reverse_output=True, ids="plain")': 4,
    'addition(index_hints=102, reverse_operands=True)': (1, 5),
    'addition(index_hints=102, first_hint="most")': (1, 5),
    'addition(scratchpad=True)': (1, 4),
    'any_order(reverse(), order="fractal", prompt=True, in_evaluation=True)': (1, 5),
    'any_order(bucket_sort())': (2, 5),
    'bucket_sort(ids="plain")': (1, 8),
    'length_gen_recipe()': (1, 5),
    'markov_field(ids="grid")': 4,
    'markov_field(ids="none")': 3,
    'markov_field(ids="grid", order="near_to_far", states=2)': 4,
    'minesweeper()': (1, 4),
    'minesweeper(ids="coupled")': 3,
    'multiplication(digits=5, pad_product=True)': (1, 5),
    'multiplication(second=2, pad_product=True, reverse_output=True, ids="coupled")': (1, 5),
    'parity()': (1, 7),
    'parity(ids="coupled")': 6,
    'random_spaces(addition(ids="plain"), law="geometric", in_evaluation=True)': (1, 5),
    'sums(operands=4, ids="coupled")': (1, 5),
    'flip_flop()': (2, 9),
    'flip_flop(ignore=0.1)': 8,
    'passkey()': (9, 20),
    'passkey(digits=5, depth=0.25, lm_weight=0.1)': 24,
    'kv_slots(keys=12)': (2, 6),
    'kv_slots(keys=12, slot=1, ids="locations")': 5,
    'passkeys(keys=2, words=3)': (15, 30),
    'chomsky15("parity_check", readout="class")': (3, 9),
    'chomsky15("reverse_string")': (1, 9),
    'chomsky15("stack_manipulation")': (2, 9),
    'code_mixed()': (7, 20),
    'code_mixed(letters=3, switches=4, ids="switches")': 12,
    'mqar(pairs=4, vocab=64)': 64,
    'mqar(pairs=2, vocab=32, random_non_queries=True)': (8, 20),
    'passkey_text()': (260, 500),
    'kv_retrieval(depth=0.5)': (400, 600),
    'ruler_lite("niah_multikey", needles=2)': (500, 600),
    'ruler_lite("freq_words")': 600,
    'language()': 16,
    'language(packing="documents")': 16,
    'segmented_text(source_len=64, segment_len=4)': 16,
    'segmented_text(source_len=64, prefix_len=6)': 16,
    'cream_text(factor=1, source_len=40)': 16,
    "code_text('pydoc_topics', units='paragraphs')": 16,
    f"ast_flatten('text:{CODE}/*.py')": 16,
    'translation(words=16)': (1, 9),
    'translation(alignments=True)': 8,
    'tipa()': (1, 3),
    'tipa(form="both", size=300)': 2,
    'impact_pe("copy", symbols=10)': (2, 6),
    'impact_pe("sum", scratchpad="full")': (2, 4),
    'impact_pe("pcfg")': 3,
    'scan()': (1, 9),
    'scan(layout="source")': 12,
    'source_target("recopy")': (2, 5),
    'source_target("inv_recopy", layout="source")': (2, 5),
    'selective_copy(blanks=2.0)': (1, 7),
    'counting(variables=2)': (2, 9),
    'counting(variables=2, full="redraw")': (2, 9),
    'word_problem("a5")': (1, 9),
    'word_problem("parity", scored="last")': 8,
    'masked_text()': 16,
    'masked_text(rate=0.5)': (3, 12),
    'blobs()': 16,
    'blobs(directions=8, larger="detail")': 24,
    'digits()': 16,
    'quadrant()': 16,
    'textures()': 15,
    'shapes()': (5, 40),
    'shapes(order="hilbert")': 30,
    'blind_pairs("triangles_hexagon", features="rwse(steps=3)")': (1, 2),
    'triangles()': (6, 9),
    'communities()': 16,
    'picture("synthetic")': 8,
    'bit_planes(picture("synthetic"))': 4,
    'checkerboard(support=20, classes=4, samples=100)': 50,
    'land(degree=4, islands=4, samples=100)': 50,
}
SOURCE = ('source', 'source_valid', 'source_positions')
PIECES = ('segmented_text', 'cream_text')  # of text, with positions of their own
GENERATED = {spec: length for spec, length in TASKS.items() if not spec.startswith('language')}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


every_task = pytest.mark.parametrize('spec', TASKS)


OF_A_USER = {'folder', 'points_folder', 'edge_lists'}  # they are tried where files are written


def first(batch):
    """What a model reads."""
    return next(
        batch[name]
        for name in ('tokens', 'image', 'adjacency', 'vectors', 'coords')
        if name in batch
    )


def of_tokens(spec):
    return make(spec).vocab_size > 0


def test_every_registered_task_is_tried_here():
    here = {spec.split('(')[0] for spec in TASKS}
    assert here | OF_A_USER == {entry.key for entry in entries('task')}


@pytest.mark.parametrize('spec', filter(of_tokens, TASKS))
def test_shapes_types_and_token_range(spec):
    task, length = make(spec), TASKS[spec]
    batch = task.sample(np.random.default_rng(0), 6, length)
    always = {'tokens', 'targets', 'loss_mask'}
    assert always <= batch.keys() <= always | {'positions', 'segment', 'valid', *SOURCE}
    source = {name for name in batch if name in SOURCE}
    assert bool(source) == bool(task.source_size) == ({'source', 'source_valid'} <= source)
    supplied = ('ids=' in spec and 'ids="none"' not in spec) or spec.startswith(
        ('any_order', 'code_text', *PIECES)
    )
    assert ('positions' in batch) == supplied == task.supplies_positions
    own = {'code_mixed': (3,), 'code_text': (3,), 'any_order': (2,), 'minesweeper': (2,)}
    own['markov_field'] = (2,)
    components = (3,) if 'ids="locations"' in spec else own.get(spec.split('(')[0], ())
    dtypes = {'loss_mask': np.float32, 'valid': np.bool_, 'source_valid': np.bool_}
    for name, array in batch.items():
        width = task.source_width(length) if name in SOURCE else task.width(length)
        if task.predicts == 'class' and name in ('targets', 'loss_mask'):
            width = 1
        inner = {'positions': components, 'source_positions': array.shape[2:]}.get(name, ())
        assert array.shape == (6, width, *inner), name
        assert array.dtype == dtypes.get(name, np.int32), name
    sizes = {'tokens': task.vocab_size, 'targets': task.output_size, 'source': task.source_size}
    for name, size in sizes.items():
        if name in batch:
            assert batch[name].min() >= 0 and batch[name].max() < size, name
    assert (batch['loss_mask'].sum(axis=1) > 0).all()
    if 'valid' in batch and task.predicts != 'class':
        assert not batch['loss_mask'][~batch['valid']].any()
    assert isinstance(task.decode(batch['tokens'][0]), str)


@pytest.mark.parametrize('spec', filter(of_tokens, TASKS))
def test_targets_are_the_next_tokens(spec):
    if make(spec).predicts != 'next' or spec.startswith(('mqar', 'cream_text')):
        pytest.skip('its targets are not the next tokens')
    batch = make(spec).sample(np.random.default_rng(0), 6, TASKS[spec])
    follows = np.ones_like(batch['tokens'][:, 1:], bool)
    if 'segment' in batch:  # between documents there is no next token
        follows = batch['segment'][:, 1:] == batch['segment'][:, :-1]
    if spec.startswith(PIECES):  # nor is the first token of the next piece one
        follows = np.diff(batch['positions'], axis=1) == 1
        assert not follows.all()
    np.testing.assert_array_equal(
        batch['tokens'][:, 1:][follows], batch['targets'][:, :-1][follows]
    )


@every_task
def test_same_state_same_batch_and_other_state_other_batch(spec):
    task, length = make(spec), TASKS[spec]
    one, two, other = (task.sample(np.random.default_rng(n), 6, length) for n in (3, 3, 4))
    same(one, two)
    assert not np.array_equal(first(one), first(other))


@every_task
def test_batch_depends_on_seed_and_index_only(spec):
    task, length = make(spec), TASKS[spec]
    one = task.dataset(length=length, batch_size=4, seed=1)
    two = make(spec).dataset(length=length, batch_size=4, seed=1)
    same(one[7], two[7])
    same(one[0], two[0])
    assert not np.array_equal(first(one[0]), first(one[1]))
    other = task.dataset(length=length, batch_size=4, seed=2)
    assert not np.array_equal(first(one[0]), first(other[0]))


@pytest.mark.parametrize('spec', GENERATED)
def test_splits_differ_under_the_same_seed(spec):
    task = make(spec)
    draw = lambda split: task.dataset(length=GENERATED[spec], batch_size=8, seed=1, split=split)[0]
    batches = {split: draw(split) for split in SPLITS}
    same(batches['test'], draw('test'))
    for one, other in itertools.combinations(SPLITS, 2):
        assert not np.array_equal(first(batches[one]), first(batches[other]))


@every_task
def test_iterator_resumes_where_it_was(spec):
    dataset = make(spec).dataset(length=TASKS[spec], batch_size=4, seed=1)
    iterator = batch_iterator(dataset)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(3)]
    fresh = batch_iterator(make(spec).dataset(length=TASKS[spec], batch_size=4, seed=1))
    fresh.set_state(state)
    for batch in expected:
        same(batch, next(fresh))


@pytest.mark.full_but_one
@every_task
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_shards_concatenate_to_the_global_batch(spec, split):
    arguments = dict(length=TASKS[spec], batch_size=6, seed=1, split=split)
    task = make(spec)
    whole, *shards = (task.dataset(**arguments, shard=s) for s in [(0, 1), (0, 3), (1, 3), (2, 3)])
    assert all(len(shard) == len(whole) for shard in shards)
    for index in (0, 5):
        pieces = [shard[index] for shard in shards]
        same(
            whole[index],
            {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]},
        )


@pytest.mark.parametrize(
    'bad, message',
    [
        (dict(batch_size=5, shard=(0, 2)), 'nearest: 4 or 6'),
        (dict(batch_size=1, shard=(0, 2)), 'nearest: 2'),
        (dict(shard=(2, 2)), 'process'),
        (dict(batch_size=0), 'at least 1'),
        (dict(seed=-1), 'seed'),
        (dict(seed=2**32), 'seed'),
        (dict(seed=1.5), 'seed'),
        (dict(split='valid'), "did you mean 'validation'"),
        (dict(length=0), 'at least'),
        (dict(length=(9, 8)), r'did you mean \(8, 9\)'),
        (dict(length='8'), 'pair of ints'),
        (dict(length=2.0), 'pair of ints'),
        (dict(length=(1, 2, 3)), 'pair of ints'),
    ],
)
@pytest.mark.parametrize('spec', ['copy()', 'language()'])
def test_wrong_pipeline_arguments_fail_when_the_dataset_is_made(spec, bad, message):
    good = dict(length=8, batch_size=4, seed=0)
    make(spec).dataset(**good)
    with pytest.raises(ValueError, match=message):
        make(spec).dataset(**(good | bad))


@pytest.mark.parametrize('spec', ['copy(ids="couple")', 'reverse(symbol=3)', 'adition()'])
def test_wrong_options_are_spec_errors(spec):
    with pytest.raises(SpecError):
        make(spec)


@pytest.mark.parametrize('spec', ['random_spaces({})', 'any_order({})'])
@pytest.mark.parametrize('inner', ['chomsky15("odds_first")', 'masked_text()', 'translation()'])
def test_what_changes_the_order_takes_tasks_of_next_tokens(spec, inner):
    with pytest.raises(SpecError, match='takes a task that predicts the next token'):
        make(spec.format(inner))


def test_seed_and_index_are_not_interchangeable():
    draws = [
        batch_rng(seed, s, i).integers(2**62) for s in SPLITS for seed in range(4) for i in range(4)
    ]
    assert len(set(draws)) == len(draws)
    assert batch_rng(1, 'train', 0).integers(2**62) != batch_rng(0, 'train', 2**32).integers(2**62)


def test_known_first_draws_stay_the_same_on_every_machine():
    # PCG64 keyed by SeedSequence([crc32('train'), 5], spawn_key=(7,)), written out with numpy
    # alone.
    sequence = np.random.SeedSequence([zlib.crc32(b'train'), 5], spawn_key=(7,))
    expected = np.random.Generator(np.random.PCG64(sequence)).integers(0, 1000, 4)
    np.testing.assert_array_equal(batch_rng(5, 'train', 7).integers(0, 1000, 4), expected)


def test_mask_convention():
    # s = p0 p1 a0 a1 E and padding; the answer begins at 2, N = 5: 1 <= t <= 3.
    batch = next_token_batch(np.array([[10, 11, 20, 21, 30, 0, 0]]), np.array([5]), np.array([2]))
    np.testing.assert_array_equal(batch['tokens'], [[10, 11, 20, 21, 30, 0]])
    np.testing.assert_array_equal(batch['targets'], [[11, 20, 21, 30, 0, 0]])
    np.testing.assert_array_equal(batch['loss_mask'], [[0, 1, 1, 1, 0, 0]])


def test_join_ragged():
    pieces = [
        (np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 1])),
        (np.array([[9]]), np.array([1, 1])),
    ]
    rows, ends = join_ragged(pieces, 5, 0)
    np.testing.assert_array_equal(rows, [[1, 2, 3, 9, 0], [4, 9, 0, 0, 0]])
    np.testing.assert_array_equal(ends, [4, 2])


def test_length_range_takes_lists_and_numpy_ints():
    assert length_range([1, 3], 1, 'n') == (1, 3)
    assert length_range(np.int64(3), 1, 'n') == (3, 3)
    assert shard_rows(6, (1, 3)) == slice(2, 4)


def test_prefetch_is_bounded():
    import grain

    made = []
    iterator = batch_iterator(
        grain.MapDataset.range(1000).map(lambda i: made.append(i) or i), prefetch=2
    )
    assert [next(iterator) for _ in range(5)] == list(range(5))
    assert len(made) <= 5 + 3


@pytest.mark.full
def test_importing_tasks_is_light():
    heavy = ('grain', 'tensorflow_datasets', 'tensorflow')
    shown = f'print([name for name in {heavy} if name in sys.modules])'
    code = f'import sys, posenc_jax.lab.tasks; {shown}'
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout
        == '[]\n'
    )

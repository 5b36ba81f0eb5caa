"""What holds for every task: shapes, masks, determinism, resuming, sharding, and what is refused of
options and lengths.
"""

import inspect
import itertools
import math
import pathlib
import re
import typing

import numpy as np
import pytest

from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.bounds import Bound, Ge, Gt, IsFinite, Le, Lt, hints_of
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
    'marked_patches()': 5,
    'marked_patches("quadrant", most=12)': (2, 6),
    'minesweeper()': (1, 4),
    'minesweeper(ids="coupled")': 3,
    'multiplication(digits=5, pad_product=True)': (1, 5),
    'multiplication(second=2, pad_product=True, reverse_output=True, ids="coupled")': (1, 5),
    'needle_video()': (2, 9),
    'needle_video(period=2, ids="layout")': 6,
    'patch_questions()': (2, 5),
    'patch_questions(asked=2, ids="layout")': 4,
    'patch_questions("time", ids="layout")': (2, 5),
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
    'skip_links()': (1, 2),
    'triangles()': (6, 9),
    'communities()': 16,
    'picture("synthetic")': 8,
    'bit_planes(picture("synthetic"))': 4,
    'checkerboard(support=20, classes=4, samples=100)': 50,
    'land(degree=4, islands=4, samples=100)': 50,
}
OF_A_USER = {'folder', 'points_folder', 'edge_lists'}  # they are tried where files are written
SOURCE = ('source', 'source_valid', 'source_positions')
PIECES = ('segmented_text', 'cream_text')  # of text, with positions of their own
DTYPES = {'targets': np.int32, 'valid': np.bool_, 'source_valid': np.bool_}
WHOLE = ('tokens', 'source', 'source_positions', 'segment')  # int32; other arrays are float32
POSITIONS = {  # components of a position, where it has several
    **{'code_mixed': 3, 'code_text': 3, 'any_order': 2, 'minesweeper': 2, 'markov_field': 2},
    **{'kv_slots': 3, 'patch_questions': 6, 'needle_video': 6, 'marked_patches': 2, 'shapes': 3},
}
REQUIRED = {  # the argument in front of the one that is tried
    **{
        'chomsky15': 'even_pairs',
        'impact_pe': 'sum',
        'word_problem': 'a5',
        'source_target': 'copy',
    },
    **{'ruler_lite': 'niah_single', 'any_order': make('reverse()')},
    **{'random_spaces': make('addition()'), **dict.fromkeys(OF_A_USER, 'x')},
}
every_task = pytest.mark.parametrize('spec', TASKS)


def key_of(spec):
    return spec.split('(')[0]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def read(batch):
    """What a model reads."""
    names = ('tokens', 'image', 'adjacency', 'vectors', 'coords')
    return next(batch[name] for name in names if name in batch)


def differ(one, other):
    assert not np.array_equal(read(one), read(other))


def sampled(spec, seed=0, rows=6):
    return make(spec).sample(np.random.default_rng(seed), rows, TASKS[spec])


def test_every_registered_task_is_tried_here():
    assert set(map(key_of, TASKS)) | OF_A_USER == {entry.key for entry in entries('task')}


@every_task
def test_shapes_types_and_the_range_of_ids(spec):
    task, length, batch = make(spec), TASKS[spec], sampled(spec)
    width = task.width(length)
    shapes = {'tokens': (width,), 'vectors': (width, task.channels), 'coords': (2,)}
    shapes |= {'adjacency': (width, width), 'segment': (width,), 'valid': (width,)}
    shapes |= dict.fromkeys(SOURCE[:2], (task.source_width(length),))
    if task.is_image:
        shapes['image'] = (length, width // length, task.channels)
    if 'coords' in batch:
        shapes['coords'] = (task.components,)
        of_target = (() if task.predicts == 'class' else (task.output_size,), ())
    else:
        of_target = [(1,) if task.predicts == 'class' else (width,)] * 2
    shapes['targets'], shapes['loss_mask'] = of_target
    several = POSITIONS.get(key_of(spec))
    shapes['positions'] = (width, several) if several else (width,)
    shapes['source_positions'] = (task.source_width(length), 2)
    assert {'targets', 'loss_mask'} < batch.keys() <= shapes.keys()
    for name, array in batch.items():
        assert array.shape == (6, *shapes[name]), name
        whole = name in WHOLE or name == 'positions' and 'vectors' not in batch
        dtype = np.int32 if whole else DTYPES.get(name, np.float32)
        if name == 'targets' and 'coords' in batch and task.predicts != 'class':
            dtype = np.float32
        assert array.dtype == dtype, name
    source = {name for name in batch if name in SOURCE}
    assert bool(source) == bool(task.source_size) == ({'source', 'source_valid'} <= source)
    supplied = ('ids=' in spec and 'ids="none"' not in spec) or spec.startswith(
        ('any_order', 'code_text', 'marked_patches', 'shapes', *PIECES)
    )
    assert ('positions' in batch) == supplied == task.supplies_positions
    sizes = {'tokens': task.vocab_size, 'targets': task.output_size, 'source': task.source_size}
    for name, size in sizes.items():
        if name in batch and batch[name].dtype == np.int32:
            assert batch[name].min() >= 0 and batch[name].max() < size, name
    assert (batch['loss_mask'].reshape(6, -1).sum(axis=1) > 0).all()
    if 'valid' in batch and task.predicts != 'class':
        assert not batch['loss_mask'][~batch['valid']].any()
    assert isinstance(task.decode(batch.get('tokens', np.zeros((1, 2), int))[0]), str)


def predicts_the_next_token(spec):
    return make(spec).predicts == 'next' and not spec.startswith(('mqar', 'cream_text'))


@pytest.mark.parametrize('spec', filter(predicts_the_next_token, TASKS))
def test_targets_are_the_next_tokens(spec):
    batch = sampled(spec)
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
def test_a_batch_depends_on_the_state_of_the_generator_or_on_seed_split_and_index(spec):
    same(sampled(spec, 3), sampled(spec, 3))
    differ(sampled(spec, 3), sampled(spec, 4))
    data = lambda **given: make(spec).dataset(length=TASKS[spec], batch_size=8, **given)
    one, again = data(seed=1), data(seed=1)
    same(one[7], again[7])
    same(one[0], again[0])
    differ(one[0], one[1])
    differ(one[0], data(seed=2)[0])
    held = {split: data(seed=1, split=split)[0] for split in SPLITS}
    same(held['test'], data(seed=1, split='test')[0])
    for this, other in itertools.combinations(SPLITS, 2):
        differ(held[this], held[other])


@every_task
def test_iterator_resumes_where_it_was(spec):
    begun = lambda: batch_iterator(make(spec).dataset(length=TASKS[spec], batch_size=4, seed=1))
    iterator, fresh = begun(), begun()
    for _ in range(3):
        next(iterator)
    fresh.set_state(iterator.get_state())
    for _ in range(3):
        same(next(iterator), next(fresh))


@pytest.mark.full_but_one
@every_task
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_shards_concatenate_to_the_global_batch(spec, split):
    arguments = dict(length=TASKS[spec], batch_size=6, seed=1, split=split)
    task = make(spec)
    whole, *shards = (task.dataset(**arguments, shard=s) for s in [(0, 1), (0, 3), (1, 3), (2, 3)])
    assert all(len(shard) == len(whole) for shard in shards)
    for index in (0, 5):
        parts = [shard[index] for shard in shards]
        same(whole[index], {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


@every_task
def test_lengths_below_the_shortest_and_empty_ranges_are_refused(spec):
    task = make(spec)
    inner = getattr(task, 'task', task)  # whose lengths those of a task around it are
    counted, shortest = inner.counted.format(inner), inner.shortest
    for length, message in (
        (shortest - 1, f'{counted} must be at least {shortest}, got {shortest - 1}'),
        ((9, 8), f'{counted} (9, 8) is empty: did you mean (8, 9)?'),
        ('8', f"{counted} must be an int or a pair of ints (shortest, longest), got '8'"),
        (2.0, 'pair of ints'),
        ((1, 2, 3), 'pair of ints'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            task.width(length)


def outside(hint):
    """Values that an annotation refuses, each with a pattern of what the message says of it."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if isinstance(inner[0], str):  # the nearest names follow, or all of them
            yield 'no such choice', "is 'no such choice'; (did you mean|valid:) "
            near = f'{inner[0]}x'
            yield near, f"is '{near}'; did you mean .*{re.escape(repr(inner[0]))}"
        else:
            yield -1, f'must be {" or ".join(map(repr, inner))}, got -1'
    elif bounds := [part for part in inner if isinstance(part, Bound)]:
        step = 1 if inner[0] is int else 0.5
        # A limit may be the value of another argument.
        said = [re.escape(b.said()) + r'=\d+' * isinstance(b.limit, str) for b in bounds]
        expected = f'{", ".join(said[:-1])} and {said[-1]}' if said[1:] else said[0]
        for bound in bounds:
            beyond = {Ge: -step, Gt: 0 * step, Le: step, Lt: 0 * step}.get(type(bound))
            if isinstance(bound, IsFinite):
                yield math.nan, f'must be {expected}, got nan'
            elif beyond is not None and not isinstance(bound.limit, str):
                value = type(step)(bound.limit + beyond)
                yield value, f'must be {expected}, got {value}'
    else:
        for option in inner:
            yield from outside(option)


@pytest.mark.parametrize('entry', entries('task'), ids=lambda entry: entry.key)
def test_values_outside_the_bounds_of_an_annotation_are_refused(entry):
    call = entry.build.__init__ if isinstance(entry.build, type) else entry.build
    for name, hint in hints_of(call).items():
        first = name in list(inspect.signature(entry.build).parameters)[:1]
        before = [REQUIRED[entry.key]] if entry.key in REQUIRED and not first else []
        values = list(outside(hint))
        assert values
        for value, message in values:
            with pytest.raises(ValueError, match=f'{entry.key} {name} {message}'):
                entry.build(*before, **{name: value})

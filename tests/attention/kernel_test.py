"""Attention by kernels, here interpreted, is attention by blocks: values and all gradients."""

import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import posenc_jax as pj
from benchmarks import kernel_table
from posenc_jax.attention.kernels import passes as kernel
from posenc_jax.attention.kernels.program import Program, at_any_depth
from posenc_jax.attention.library import choice as library
from posenc_jax.base.targets import INTERPRETED, made_for
from posenc_jax.testing.subject import draw
from tests import contract_test
from tests.attention import kernel_tiles_test, ring_test
from tests.attention.ring_test import MIXED, TEXTS, same

LENGTH = 20
BLOCK = (8, 4)
TEXT = {name: a[:, :LENGTH] for name, a in MIXED.items()}


def both(
    encoding,
    text=TEXT,
    heads_first=False,
    dtype=jnp.float32,
    block=BLOCK,
    last=None,
    target='interpreter',
):
    """The gradients and results of the kernel and of the blocked form; with `last`, for so many of
    the last queries over all keys.
    """
    options = dict(heads_first=heads_first, one_text=last is None)
    blocked, kernels = (
        ring_test.gradients_and_results(block, implementation=how, **options)
        for how in ('blocked', 'kernel')
    )
    given = ring_test.arguments(encoding, LENGTH, heads_first, dtype, **text)
    given = given if last is None else last_queries(last, *given)
    with made_for(target):
        found = kernels(*given)
    return found, blocked(*given)


def last_queries(count, floats, graphdef, constants, others, cotangent):
    params, q, k, v, tq, tk = floats
    last = lambda tree: jax.tree.map(lambda a: a[:, -count:], tree)
    floats = params, last(q), k, v, last(tq), tk
    return floats, graphdef, constants, (last(others[0]), others[1]), last(cotangent)


each_interpreter = pytest.mark.parametrize('target', INTERPRETED)  # of a GPU, and of a TPU


def example(spec, **sizes):
    return pj.make(spec, causal=True, **contract_test.CONTEXT | sizes)


# What `docs/performance.md` says.
KERNELS = (Path(__file__).parents[2] / 'docs' / 'performance.md').read_text(encoding='utf-8')
KERNELS = KERNELS.split('### What lowers')[1].split('\n##')[0]


def documented(name):
    """Whether the kernels of an encoding lower, for each platform."""
    rows = [line.split(' | ') for line in KERNELS.splitlines() if line.startswith(f'| {name} |')]
    if rows:
        ((_, *cells),) = rows
        return [cell.startswith(kernel_table.LOWERS) for cell in cells]
    (everywhere,) = re.findall(r'For both, \d+: ([^.]*)\.', KERNELS)
    return [name in everywhere.replace('\n', ' ').split(', ')] * 2


@pytest.mark.full
@contract_test.every_entry
def test_every_encoding(entry):
    """The kernels of a GPU or those of a TPU, by the name. What lowers for both is tested below."""
    if contract_test.has_plain_pairs(entry):
        pytest.skip('its kernel is that of rope')
    if not any(documented(contract_test.id_of(entry))):
        pytest.skip('docs/performance.md says why no accelerator runs it')
    name = contract_test.id_of(entry)
    target = INTERPRETED[zlib.crc32(name.encode()) % 2]
    same(*both(contract_test.make(entry), target=target))


@pytest.mark.full
@pytest.mark.parametrize('key', contract_test.REPRESENTATIVES)
def test_representatives_in_bfloat16(key):
    encoding = contract_test.make(ring_test.entry_of(key))
    found = both(encoding, dtype=jnp.bfloat16, target='tpu_interpreter')
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        least = 1e-2 * max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, atol=least, rtol=0)


@pytest.mark.full_where(condition=lambda spec, text: spec not in ('shaw()', 'cope()') or not text)
@pytest.mark.parametrize('text', [TEXT, {}], ids=['packed and padded', 'one document'])
@pytest.mark.parametrize('spec', ['shaw()', 'cope()', 'alibi()', 't5_rpe() | window(size=5)'])
def test_some_encodings(spec, text):
    same(*both(example(spec), text))


@pytest.mark.full_where(condition=lambda spec, text: text != {})
@pytest.mark.parametrize('text', [TEXT, {}], ids=['packed and padded', 'one document'])
@pytest.mark.parametrize('spec', kernel_tiles_test.LOOK_UPS)
def test_tiles_with_look_ups_and_uniform_ones(spec, text):
    same(*both(example(spec), text))


@pytest.mark.full
@pytest.mark.parametrize('spec', kernel_tiles_test.LOOK_UPS)
def test_uniform_tiles_in_bfloat16(spec):
    for one, other in zip(*map(jax.tree.leaves, both(example(spec), {}, dtype=jnp.bfloat16))):
        one, other = (np.asarray(a, np.float32) for a in (one, other))
        np.testing.assert_allclose(one, other, atol=1e-2 * max(1.0, abs(other).max()), rtol=0)


@pytest.mark.full_where(condition=lambda spec: spec not in ('alibi()', 'cope()'))
@pytest.mark.parametrize(
    'spec',
    ['alibi()', 'cope()', 'shaw()', 't5_rpe() | window(size=5)', 'fire(width=16)', 'cable()'],
)
def test_the_kernels_of_a_tpu(spec):
    same(*both(example(spec), target='tpu_interpreter'))


@pytest.mark.full
def test_too_many_carries_are_not_kept(monkeypatch):
    monkeypatch.setattr(kernel, '_MOST_CARRIES', 0.1)
    monkeypatch.setattr(kernel, 'pull', None)
    same(*both(example('cope()')))


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize('spec', ['shaw()', 'cope()'])
def test_other_queries_than_keys(spec, target):
    same(*both(example(spec), last=5, target=target))


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize('spec', ['t5_rpe()', 'cope()'])
def test_keys_that_stand_heads_first(spec, target):
    same(*both(example(spec), heads_first=True, target=target))


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize('block', [1, (20, 3), (7, 32)])
def test_blocks(block, target):
    same(*both(example('alibi()'), block=block, target=target))


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize('spec', ['alibi()', 'alibi_symmetric()', 'rope() | full()'])
def test_queries_that_see_later_keys(spec, target):
    encoding = pj.make(spec, causal=False, **contract_test.CONTEXT)
    same(*both(encoding, target=target))


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize('texts', [1, 3], ids=['one text', 'texts of their own'])
def test_vmap(texts, target):
    starts = jnp.arange(texts)[:, None] % 3  # how many tokens of a text are padding
    tok = jax.vmap(lambda start: pj.Tokens.of(valid=jnp.arange(8)[None] >= start))(starts)
    q, k, v = (ring_test.draw(n, 3, 2, 8, heads, 8) for n, heads in enumerate((4, 2, 2)))
    encoding, axes = example('alibi()'), (0, 0, 0, None if texts == 1 else 0)
    tok = jax.tree.map(lambda a: a[0], tok) if texts == 1 else tok

    def run(how):
        own = lambda q, k, v, tok: pj.attend(
            encoding, q, k, v, tok, tok, implementation=how, block=4
        )
        return jax.vmap(own, axes)(q, k, v, tok)

    with made_for(target):
        found = run('kernel')
    np.testing.assert_allclose(found, run('blocked'), atol=1e-5)


@pytest.mark.full
@each_interpreter
@pytest.mark.parametrize(
    'spec, causal', [('t5_rpe()', True), ('cope()', True), ('alibi_symmetric()', False)]
)
def test_a_ring_of_kernels(spec, causal, target):
    encoding = pj.make(spec, causal=causal, **contract_test.CONTEXT)
    given = ring_test.arguments(encoding, **TEXTS['packed'])
    expected = ring_test.gradients_and_results(BLOCK)(*given)
    with made_for(target), jax.set_mesh(ring_test.mesh_of(tensor=2, sequence=4)):
        found = ring_test.gradients_and_results(BLOCK, implementation='kernel')(*given)
    same(found, expected)


def test_a_program_leaves_out_what_is_not_needed():
    table = np.arange(5.0)
    function = lambda x, y: (jnp.sin(y), x + table)
    program = Program('interpreter', function, jnp.ones(5), jnp.ones(5))
    assert program.reads == [True, True] and len(program.constants) == 1
    program.keep([True, False])
    assert program.reads == [False, True] and not program.constants
    np.testing.assert_allclose(program([], jnp.ones(5), jnp.zeros(5))[0], np.zeros(5))


def test_a_program_of_a_tpu_moves_no_booleans():
    def function(x, small):
        flags = (x > 2).reshape(2, 3).T
        either, number = jax.lax.cond(small, lambda: (flags, 1), lambda: (~flags, 2))
        return either, number

    x = jnp.arange(6.0)
    program = Program('tpu_interpreter', function, x, jnp.array(True))
    moving = [
        equation
        for equation in at_any_depth(program._equations)
        if equation.primitive.name in ('reshape', 'transpose', 'cond')
    ]
    assert len(moving) == 3
    assert not any(a.aval.dtype == jnp.bool_ for equation in moving for a in equation.outvars)
    for small in map(jnp.array, (True, False)):
        for found, expected in zip(program(program.constants, x, small), function(x, small)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.full
@pytest.mark.parametrize('entry', contract_test.ENTRIES, ids=contract_test.id_of)
def test_what_lowers_is_documented(entry):
    card, key = entry.card, contract_test.id_of(entry)
    if contract_test.has_plain_pairs(entry):
        assert documented(key) == documented('rope')
        return
    found = [kernel_table.lowering(card.key, card.example, name) for name in kernel_table.PLATFORMS]
    assert [cell == kernel_table.LOWERS for cell in found] == documented(key), found


@pytest.mark.full_where(condition=lambda spec, platform: spec != 't5_rpe()')
@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
@pytest.mark.parametrize('spec', kernel_table.MODELS)
def test_twelve_layers_on_eight_devices_lower(spec, platform):
    text = kernel_table.model(spec, platform).as_text()
    names = ['attention', 'attention_backward_queries', 'attention_backward_keys']
    if 'cope' in spec:
        # In a ring a layer with a carry meets its own keys and those of others in two calls, and
        # has the backward pass of the blocked form.
        names = ['attention', 'attention']
    assert re.findall(r'name = "(attention\w*)"', text) == names
    call = dict(cuda='gpu.triton', tpu='tpu_custom_call')[platform]
    assert text.count(call) == len(names)
    assert 'collective_permute' in text  # keys travel


@pytest.mark.full
@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
@pytest.mark.parametrize('kind', kernel_table.OTHER_KINDS)
def test_models_that_are_no_decoders_lower(kind, platform):
    spec, fields = kernel_table.OTHER_KINDS[kind]
    text = kernel_table.model(spec, platform, kind=kind, **fields).as_text()
    for name in ('attention', 'attention_backward_queries', 'attention_backward_keys'):
        # The encoder, the decoder, and cross-attention of an encoder-decoder.
        assert text.count(f'name = "{name}"') == (1 if kind == 'encoder' else 3)


@pytest.mark.full
@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
def test_a_layer_without_a_kernel_is_computed_in_blocks_beside_the_others(platform):
    pattern = 'alibi()', 'randomized_alibi(max_len=4096)'
    fields = dict(layers=2, pattern=pattern)
    text = kernel_table.model('alibi()', platform, implementation='fused', **fields).as_text()
    names = ['attention', 'attention_backward_queries', 'attention_backward_keys']
    assert re.findall(r'name = "(attention\w*)"', text) == names
    with pytest.raises(ValueError, match="does not draw random numbers .* or 'fused'"):
        kernel_table.model('alibi()', platform, **fields)


# Wrong input.


def test_the_package_of_the_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr('sys.argv', ['kernel_table.py', '--compile'])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='pip install libtpu'):
        kernel_table.main()


def attend(q=(1, 32, 2, 16), k=None, spec='alibi()', dtype=jnp.float32, **options):
    q = jnp.zeros(q, dtype)
    k = q if k is None else jnp.zeros(k, dtype)
    tok = pj.Tokens.of(length=q.shape[1])
    encoding = pj.make(spec, heads=q.shape[2], head_dim=q.shape[3], causal=True)
    return pj.attend(encoding, q, k, k, tok, tok, implementation='kernel', **options)


def test_a_cpu_has_no_kernel():
    with pytest.raises(ValueError) as error:
        attend()
    assert str(error.value) == (
        "attend: implementation='kernel' does not run on cpu; use implementation='blocked' or "
        "'fused' (of a run: --config.model.implementation=blocked)"
    )


@pytest.mark.parametrize(
    'platform, options, message',
    [
        (
            'cuda',
            dict(q=(1, 32, 2, 24)),
            'a head width that is a power of two of at least 16, got 24',
        ),
        (
            'cuda',
            dict(q=(1, 32, 2, 8)),
            'a head width that is a power of two of at least 16, got 8',
        ),
        ('cuda', dict(block=48), 'a block that is a power of two of at least 16, got 48'),
        ('tpu', dict(q=(1, 32, 2, 12)), 'a head width that is a multiple of 8, got 12'),
        ('tpu', dict(block=(128, 64)), 'a block that is a multiple of 128, got 64'),
        (
            'tpu',
            dict(dtype=jnp.float16),
            'queries in float32 or bfloat16 on a TPU, got float16; cast them',
        ),
    ],
)
def test_sizes_that_a_kernel_cannot_take(platform, options, message):
    with made_for(platform):
        with pytest.raises(ValueError, match=f"needs {message}.*use implementation='blocked'"):
            attend(**options)


@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
@pytest.mark.parametrize(
    'key, reason',
    [
        ('gali', 'loop over the rows of a tile'),
        ('randomized_alibi', 'draw random numbers in a tile'),
    ],
)
def test_doors_that_a_kernel_cannot_run(key, reason, platform):
    entry = ring_test.entry_of(key)
    run, arguments = kernel_table.attention(key, entry.card.example, platform, backward=False)
    message = rf"'kernel' does not {reason}, as {key}\(.* does; use implementation='blocked'"
    with pytest.raises(ValueError, match=message):
        jax.jit(run).trace(*arguments)


OURS, BLOCKS = 'in a kernel of this library', r'in blocks \(a kernel of this library '
SCORES = ", because .* opens the door 'logits'"
UNASKED = ', whose compiler was not asked about .* on this device'
GALI = 'gali(encoding=rope())'


def traced(platform, spec, width=16, mesh=('data',), batch=1):
    """What is taken for attention and its gradients that are `fused`, inside of `jax.shard_map`
    over the axes of `mesh`.
    """
    encoding = pj.make(spec, heads=2, head_dim=width, causal=True, train_len=16)
    tok = pj.Tokens.of(length=128)
    q = jax.ShapeDtypeStruct((batch, 128, 2, width), jnp.bfloat16)

    def loss(q):
        arrays = encoding.project(q, q, q, tok, tok)
        return pj.attend(encoding, *arrays, applied=pj.TOKEN_STAGE, implementation='fused').sum()

    shape = (1,) * len(mesh)
    abstract = AbstractMesh(shape, mesh, axis_types=(AxisType.Manual,) * len(mesh))
    with made_for(platform), jax.sharding.use_abstract_mesh(abstract), library.taken() as found:
        jax.eval_shape(jax.grad(loss), q)
    (words,) = found or ['']
    return words


@pytest.mark.parametrize(
    'platform, spec, options, words',
    [
        ('cuda', 'alibi()', {}, OURS + UNASKED + SCORES),
        ('tpu', 't5_rpe()', {}, OURS + UNASKED + SCORES),
        ('cuda', 'rope()', {}, 'cuDNN'),
        ('cuda', GALI, {}, rf'{BLOCKS}does not loop over .* as gali.* does\){SCORES}'),
        ('cuda', 'alibi()', dict(width=24), rf'{BLOCKS}needs a head width .* got 24\){SCORES}'),
        ('tpu', 'alibi()', dict(mesh=()), rf'{BLOCKS}needs jax.shard_map on several .*\){SCORES}'),
        ('cpu', 'alibi()', {}, ''),
    ],
)
def test_the_next_way_is_taken_where_a_kernel_cannot_run(
    platform, spec, options, words, some_version
):
    assert re.fullmatch(words, traced(platform, spec, **options))


@pytest.mark.parametrize('platform', kernel_table.PLATFORMS)
def test_a_symbolic_batch_is_computed_in_blocks(platform):
    (batch,) = jax.export.symbolic_shape('b')
    words = traced(platform, 'alibi()', batch=batch)
    assert re.fullmatch(rf'{BLOCKS}needs known sizes, got b rows, .*\){SCORES}', words)


@pytest.mark.parametrize(
    'target, spec, width, words',
    [
        ('interpreter', 'alibi()', 16, OURS),
        ('cuda', GALI, 16, f'{BLOCKS}does not loop'),
        ('cuda', 'alibi()', 24, f'{BLOCKS}needs a head width'),
    ],
)
def test_fused_attention_is_attention(target, spec, width, words):
    encoding = pj.make(spec, heads=2, head_dim=width, causal=True, train_len=16)
    tok = pj.Tokens.of(length=32)
    q = draw(0, 1, 32, 2, width)

    def run(q, implementation):
        arrays = encoding.project(q, q, q, tok, tok)
        options = dict(applied=pj.TOKEN_STAGE, implementation=implementation)
        return pj.attend(encoding, *arrays, **options)

    with made_for(target), library.taken() as taken:
        out, pull = jax.vjp(lambda q: run(q, 'fused'), q)
        gradients = pull(out)
    assert re.match(words, *taken)
    expected, pull = jax.vjp(lambda q: run(q, 'blocked'), q)
    same(out, expected)
    same(gradients, pull(expected))


@pytest.mark.full
@pytest.mark.parametrize(
    'check_vma, words', [(True, f'{BLOCKS}needs check_vma=False'), (False, OURS)]
)
def test_fused_attention_in_a_ring(check_vma, words):
    ringed, whole, arrays = ring_test.in_a_ring('t5_rpe()', check_vma, implementation='fused')
    of = lambda run: jax.jit(jax.value_and_grad(lambda *a: jnp.sin(run(*a)).mean(), (0, 1, 2)))
    with made_for('interpreter'), library.taken() as taken:
        found = of(ringed)(*arrays)
    assert re.match(words, *taken)
    same(found, of(whole)(*arrays))


def test_an_encoding_that_joins_heads():
    encoding = contract_test.make(ring_test.entry_of('cope_complex'))
    message = "one head at a time, which cope_complex.* does not take.*use implementation='blocked'"
    with pytest.raises(ValueError, match=message):
        both(encoding)


def on_a_tpu(length, **options):
    """The shapes of attention and its gradients by the kernels of a TPU."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 128), jnp.bfloat16)
    tok, encoding = pj.Tokens.of(length=length), pj.make('alibi()', heads=2, causal=True)
    options = dict(implementation='kernel') | options
    run = lambda *qkv: pj.attend(encoding, *qkv, tok, tok, **options).astype(jnp.float32).sum()
    with made_for('tpu'):
        return jax.eval_shape(jax.grad(run, (0, 1, 2)), shape, shape, shape)


@pytest.mark.parametrize('length, block', [(508 * 256, None), (2**18, 1024)])
def test_a_tpu_takes_long_texts(length, block):
    """A kernel that holds all keys of a head takes 2^13 of this width."""
    assert [a.shape[1] for a in on_a_tpu(length, block=block)] == [length] * 3


@pytest.mark.parametrize(
    'length, block, message',
    [
        (
            510 * 256,
            None,
            'the order of 510 x 510 blocks, which is 261,120 numbers, .* a larger bl',
        ),
        (2**12, 2048, r'\S+ MiB of the memory .* of shape \(2048, 2048\); use a smaller block'),
    ],
)
def test_what_a_tpu_core_does_not_hold(length, block, message):
    with pytest.raises(ValueError, match=f'would need {message}'):
        on_a_tpu(length, block=block)


@pytest.mark.full
def test_the_memory_of_a_tpu():
    """What is not written is NaN, and two steps that use one place at once are an error."""
    from jax.experimental.pallas import tpu

    checked = tpu.InterpretParams(
        detect_races=True, uninitialized_memory='nan', dma_execution_mode='on_wait'
    )
    given = ring_test.arguments(example('cope()'), 256)
    run = lambda how: ring_test.gradients_and_results(128, implementation=how)(*given)
    with made_for('tpu_interpreter'), tpu.force_tpu_interpret_mode(checked):
        found = run('kernel')
    same(found, run('blocked'))


def test_no_kernel_where_marks_of_mesh_axes_are_checked():
    cut = PartitionSpec('ring')
    tok, encoding = pj.Tokens.of(length=4), pj.make('alibi()', heads=2, causal=True)
    run = jax.shard_map(
        lambda q: pj.attend(encoding, q, q, q, tok, tok, implementation='kernel'),
        mesh=ring_test.ring_of(2), in_specs=cut, out_specs=cut,
    )  # fmt: skip
    with made_for('interpreter'):
        with pytest.raises(ValueError, match='needs check_vma=False'):
            run(jnp.zeros((2, 4, 2, 8)))

"""What computes attention, and why: the argument, the file of decisions, the default."""

import json
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import posenc_jax as pj
from benchmarks.written_decisions import write
from posenc_jax.attention import decisions, policy
from posenc_jax.attention.decisions import Decision
from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.library import choice as library
from posenc_jax.base.targets import made_for
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.testing.subject import draw
from tests.attention.ring_test import same

UNLISTED = policy._unlisted
OURS, BLOCKS = 'in a kernel of this library', 'in blocks (a kernel of this library '
LENGTH, HEADS, WIDTH = 512, 4, 64
SIMPLE = 'the default for encodings of the class none or bias, not '
CASES = {  # (platform, device, spec) -> the first words
    ('cuda', 'sm_90', 'alibi()'): f'{OURS}, the default on sm_90',
    ('cuda', 'sm_80', 'nope()'): f'{OURS}, the default on sm_80',
    ('tpu', 'v5e', 'kerple()'): f'{OURS}, the default on v5e',
    ('cuda', 'sm_90', 't5_rpe()'): f'{BLOCKS}is {SIMPLE}look-up)',
    ('tpu', 'v5p', 'alibi()'): f'{OURS}, the default on v5p',
    ('tpu', 'v5p', 'shaw()'): f'{BLOCKS}is {SIMPLE}look-up)',
    ('cuda', 'sm_90', 'cope()'): f'{BLOCKS}is {SIMPLE}carry)',
    ('cuda', 'sm_90', 'path()'): f'{BLOCKS}is {SIMPLE}carry)',
    ('cuda', 'sm_90', 'transformer_xl()'): f'{BLOCKS}is {SIMPLE}products)',
    ('cuda', 'sm_75', 'alibi()'): f'{BLOCKS}is the default on sm_80, sm_90, v5e, v5p, and this is ',
    ('cuda', None, 'alibi()'): f'{BLOCKS}is the default on sm_80, sm_90, v5e, v5p, and this is no ',
}


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """Where the file of decisions lies; it is not there."""
    monkeypatch.delenv(decisions.VARIABLE, raising=False)
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
    decisions._read_once.cache_clear()
    monkeypatch.setattr(policy, '_unlisted', lambda *_: None)
    return tmp_path / 'posenc_jax' / 'attention.json'


def traced(platform, device, spec='alibi()', length=LENGTH, mesh=('data',), **options):
    """What is taken for attention and its gradients, inside of `jax.shard_map`."""
    context = dict(heads=HEADS, head_dim=WIDTH, model_dim=HEADS * WIDTH, train_len=16)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **context)
    tok = pj.Tokens.of(length=length)
    q = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.bfloat16)

    def loss(q):
        x = jnp.zeros((1, length + encoding.lookback, HEADS * WIDTH), q.dtype)
        arrays = encoding.project(q, q, q, tok, tok, x)
        return pj.attend(encoding, *arrays, applied=pj.TOKEN_STAGE, **options).sum()

    sizes = (1,) * len(mesh)
    abstract = AbstractMesh(sizes, mesh, axis_types=(AxisType.Manual,) * len(mesh))
    with made_for(platform, device), jax.sharding.use_abstract_mesh(abstract):
        with library.taken() as found:
            jax.eval_shape(jax.grad(loss), q)
    (words,) = found
    return words


@pytest.mark.full_where(condition=lambda given: given[2] not in ('alibi()', 't5_rpe()', 'cope()'))
@pytest.mark.parametrize('given', CASES, ids=str)
def test_the_default(given, monkeypatch):
    if given[2] == 'nope()':  # splash attention and cuDNN come first
        monkeypatch.setattr(library, '_choice', lambda *_: 'it is not there')
    assert traced(*given).startswith(CASES[given])


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(length=256), f'{BLOCKS}is the default for more logits than one tile has), because '),
        (dict(mesh=()), f'{BLOCKS}needs jax.shard_map on several devices), because alibi opens'),
        (dict(block=128), "in blocks, because alibi opens the door 'logits'"),
        (dict(implementation='fused'), f'{OURS}, because alibi opens'),
        (dict(implementation='fused', spec='t5_rpe()'), f'{OURS}, because t5_rpe opens'),
    ],
)
def test_what_the_caller_gives_comes_first(options, words):
    assert traced('cuda', 'sm_90', **options).startswith(words)


def test_a_kernel_that_no_compiler_was_asked_about_is_not_the_default(monkeypatch):
    line = SimpleNamespace(encoding='alibi', width=WIDTH, dtype='bfloat16', target='sm_90')
    monkeypatch.setattr(compiled, 'table', lambda: {1: line})
    encoding = pj.make('rope() | alibi()', heads=2, head_dim=WIDTH, causal=True)
    given = (encoding, WIDTH, 'float16', 'sm_90')
    assert UNLISTED(*given) is None
    with made_for('cuda', 'sm_90'), jax.default_matmul_precision('highest'):
        assert UNLISTED(encoding, WIDTH, 'float32', 'sm_90') == 'products in full float32'
    for n, other in enumerate([pj.make('kerple()', heads=2), 2 * WIDTH, 'float32', 'sm_80']):
        changed = [*given[:n], other, *given[n + 1 :]]
        name = 'alibi' if n else 'kerple'
        assert UNLISTED(*changed) == f'{name} with heads of width {changed[1]} in {changed[2]}'


CLASSES = {
    'none': ['rope()', 'window(size=5)', 'attention_sink()', 'nope() | full()'],
    'bias': ['alibi()', 'kerple()', 'rope() | alibi()', 'soft_cap()', 'ssmax()'],
    'products': ['transformer_xl()', 'sandwich()', 'self_extend(encoding=rope())', 'fire()'],
    'look-up': ['t5_rpe()', 'shaw()', 't5_rpe() | alibi()'],
    'carry': ['cope()', 'path()', 'cable()', 'alibi() | cope()'],
}


@pytest.mark.parametrize(
    'spec, expected', [(spec, name) for name, specs in CLASSES.items() for spec in specs]
)
def test_the_class_of_an_encoding(spec, expected):
    context = dict(heads=HEADS, head_dim=16, model_dim=HEADS * 16, train_len=16)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **context)
    tok, q = pj.Tokens.of(length=8), draw(0, 1, 8, HEADS, 16)
    arrays = encoding.project(q, q, q, tok, tok, jnp.zeros((1, 8 + encoding.lookback, HEADS * 16)))
    assert policy.class_of(encoding, *arrays) == expected


def written(file, *found, kind='sm_90'):
    write(file, kind, 'today', [Decision(*one) for one in found])
    return file


def test_the_file_decides(file):
    by = f'by {written(file, ("look-up", WIDTH, "bfloat16", "kernel", (32, 64)))}'
    assert traced('cuda', 'sm_90', 't5_rpe()').startswith(f'{OURS}, {by}, because t5_rpe opens')
    assert traced('cuda', 'sm_90', 'alibi()').startswith(f'{OURS}, the default on sm_90')
    written(file, ('bias', WIDTH, 'bfloat16', 'blocked'), ('none', WIDTH, 'float32', 'blocked'))
    for given in ({}, dict(implementation='fused')):
        assert traced('cuda', 'sm_90', **given).startswith(f'in blocks ({by}), because alibi opens')
    # A tile that the kernel of a GPU cannot take.
    written(file, ('bias', WIDTH, 'bfloat16', 'kernel', (48, 64)))
    words = traced('cuda', 'sm_90')
    assert words.startswith(f'{BLOCKS}needs a block that is a power of two of')
    assert f', got 48), though {file} asks for it, because' in words


def test_a_kernel_that_the_file_asks_for_must_fit(file):
    for tile, found in (((64, 64), BLOCKS), ((128, 64), BLOCKS), ((32, 32), OURS)):
        written(file, ('carry', WIDTH, 'bfloat16', 'kernel', tile))
        words = traced('cuda', 'sm_90', 'path()')
        assert words.startswith(found)
    written(file, ('carry', WIDTH, 'bfloat16', 'kernel', (64, 64)))
    words = traced('cuda', 'sm_90', 'path()')
    assert words.startswith(f'{BLOCKS}would spill 50924 bytes of each thread for path with heads ')
    assert f'more than 1024), though {file} asks for it, because path opens' in words


@pytest.mark.parametrize(
    'platform, device, end',
    [
        ('cuda', 'sm_90', ', because alibi opens'),
        ('cuda', 'sm_120', ', whose compiler was not asked about alibi with heads of width 64 in '),
        ('cuda', None, ', whose compiler was not asked about alibi with heads of width 64 in '),
        ('interpreter', None, ', because alibi opens'),
    ],
)
def test_a_kernel_that_no_compiler_was_asked_about_is_named(platform, device, end, monkeypatch):
    monkeypatch.setattr(policy, '_unlisted', UNLISTED)
    words = traced(platform, device, implementation='fused', length=64)
    assert words.startswith(f'{OURS}{end}')


def test_the_file_can_leave_out_the_kernels_of_jax(file):
    written(file, ('none', WIDTH, 'bfloat16', 'kernel', (128, 256), False), kind='v5e')
    assert traced('tpu', 'v5e', 'rope()') == f'{OURS}, by {file}'
    written(file, ('none', WIDTH, 'bfloat16', 'kernel', (128, 128)), kind='v5e')
    assert traced('tpu', 'v5e', 'rope()') == 'splash attention'


def test_attention_by_the_file_is_attention(file):
    written(file, ('bias', 16, 'float32', 'kernel', (8, 16)), kind='here')
    encoding, tok = pj.make('alibi()', heads=2, head_dim=16, causal=True), pj.Tokens.of(length=32)
    q = draw(0, 1, 32, 2, 16)
    run = lambda q, **how: pj.attend(encoding, q, q, q, tok, tok, **how)
    expected, pull = jax.vjp(lambda q: run(q, implementation='blocked'), q)
    with made_for('interpreter', 'here'), library.taken() as taken:
        out, pull_ours = jax.vjp(run, q)
        gradients = pull_ours(out)
    assert next(iter(taken)).startswith(f'{OURS}, by {file}')
    same((out, gradients), (expected, pull(expected)))


def test_other_devices_stay_in_the_file(file):
    written(file, ('bias', 64, 'bfloat16', 'blocked'), kind='one')
    written(file, ('none', 64, 'bfloat16', 'kernel', (64, 64), False), kind='other')
    found = decisions.read(file)
    assert found['one']['decisions'] == [Decision('bias', 64, 'bfloat16', 'blocked')]
    own = Decision('none', 64, 'bfloat16', 'kernel', (64, 64), False)
    assert found['other'] == dict(measured='today', decisions=[own])
    words = f"{OURS}, the default on sm_90 ({file} knows no device 'sm_90'; valid: 'one', 'other')"
    assert traced('cuda', 'sm_90').startswith(words)


GOOD = dict(width=64, dtype='bfloat16', form='kernel', **{'class': 'bias'})
BROKEN = {  # the end of the line -> the text of the file
    'cannot be read (Expecting': '{"version": 1,',
    'cannot be read (Expecting value: line 1': '',
    'version must be 1, got 2': '{"version": 2, "devices": {}}',
    'version must be 1, got None': '[]',
    "the file needs an object 'devices', got None": '{"version": 1}',
    "the device 'x' needs a list 'decisions', got 3": '{"version": 1, "devices": {"x": '
    '{"decisions": 3}}}',
    **{
        line: json.dumps({'version': 1, 'devices': {'x': dict(measured='', decisions=[one])}})
        for line, one in {
            "form of decision 1 of the device 'x' is 'kernl'; did you mean 'kernel'?": GOOD
            | dict(form='kernl'),
            "class of decision 1 of the device 'x' is 'biass'; did you mean 'bias'?": GOOD
            | {'class': 'biass'},
            'block of decision 1 of': GOOD | dict(block=[64]),
            "decision 1 of the device 'x' needs a number 'width', got '64'": GOOD
            | dict(width='64'),
            'library of decision 1 of': GOOD | dict(library=1),
        }.items()
    },
}


@pytest.mark.parametrize('line', BROKEN)
def test_a_broken_file_is_told_in_one_line(line, file, monkeypatch):
    monkeypatch.setenv(decisions.VARIABLE, str(file))
    file.parent.mkdir()
    file.write_text(BROKEN[line])
    with pytest.warns(UserWarning, match='attend: ') as told:
        words = traced('cuda', 'sm_90')
    assert len(told) == 1 and '\n' not in words
    assert words.startswith(f'in blocks ({file}') and line in words and 'write it anew' in words
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it is told once
        assert traced('cuda', 'sm_90', implementation='fused') == words
    said = write(file, 'sm_90', 'today', [Decision('bias', WIDTH, 'bfloat16', 'blocked')])
    kept = file.with_name('attention.json.bak')
    assert line in said and said.endswith(f', so it lies at {kept} now.') and '\n' not in said
    assert kept.read_text() == BROKEN[line]
    assert 'by' in traced('cuda', 'sm_90')


def test_the_variable_names_the_file(file, tmp_path, monkeypatch):
    written(file, ('bias', WIDTH, 'bfloat16', 'blocked'))
    assert traced('cuda', 'sm_90').startswith('in blocks (by ')
    monkeypatch.setenv(decisions.VARIABLE, '')
    assert traced('cuda', 'sm_90').startswith(OURS)
    monkeypatch.setenv(decisions.VARIABLE, str(tmp_path / 'missing.json'))
    words = f'in blocks ({tmp_path / "missing.json"}, which {decisions.VARIABLE} names, does not'
    assert traced('cuda', 'sm_90').startswith(words)


def test_a_cpu_reads_no_file(file):
    file.parent.mkdir()
    file.write_text('{')
    q, tok = jnp.ones((1, 8, 2, 4)), pj.Tokens.of(length=8)
    encoding = pj.make('alibi()', heads=2, causal=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for how in (None, 'fused'):
            out = pj.attend(encoding, q, q, q, tok, tok, implementation=how)
            np.testing.assert_allclose(out, 1, rtol=1e-6)


def test_arrays_that_vary_over_a_mesh_are_computed_in_blocks(file):
    """`jax.shard_map` that checks how arrays vary takes no kernel, and no file is read for it."""
    written(file, ('bias', WIDTH, 'float32', 'blocked'))
    encoding = pj.make('alibi()', heads=HEADS, head_dim=WIDTH, causal=True)
    tok, q = pj.Tokens.of(length=LENGTH), jnp.zeros((2, LENGTH, HEADS, WIDTH))
    mesh, rows = make_mesh(data=2, devices=jax.devices()[:2]), PartitionSpec('data')
    run = lambda q: pj.attend(encoding, q, q, q, tok, tok)
    with made_for('cuda', 'sm_90'), library.taken() as taken:
        jax.eval_shape(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows), q)
    assert next(iter(taken)).startswith(f'{BLOCKS}needs check_vma=False inside jax.shard_map)')


def test_arrays_on_the_cpu_of_a_machine_with_a_gpu():
    """The program for the GPU has the kernels, and the one for the CPU computes the same."""
    encoding = pj.make('alibi()', heads=HEADS, head_dim=WIDTH, causal=True)
    tok, q = pj.Tokens.of(length=LENGTH), draw(0, 1, LENGTH, HEADS, WIDTH)
    run = lambda q, how=None: pj.attend(encoding, q, q, q, tok, tok, implementation=how)
    gradients = lambda how: jax.value_and_grad(lambda q: jnp.sin(run(q, how)).sum())
    mesh = AbstractMesh((1,), ('data',), axis_types=(AxisType.Manual,))
    with made_for('cuda', 'sm_90'), jax.sharding.use_abstract_mesh(mesh):
        program = jax.jit(gradients(None)).trace(jax.typeof(q))
    lowered = lambda name: program.lower(lowering_platforms=(name,)).as_text()
    assert lowered('cuda').count('__gpu$xla.gpu.triton') == 3
    assert 'exponential' not in lowered('cuda') and 'triton' not in lowered('cpu')
    same(program.lower(lowering_platforms=('cpu',)).compile()(q), gradients('blocked')(q))

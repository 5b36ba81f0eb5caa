"""The attention of cuDNN is attention by blocks where it is chosen. There is no GPU here: JAX's own
operations stand for the kernel, which they define, and a version of cuDNN is pretended.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import posenc_jax as pj
from benchmarks import kernel_table
from posenc_jax.attention.library import choice as library
from posenc_jax.attention.library import cudnn
from posenc_jax.base.targets import made_for
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import MESH_AXES, make_mesh
from posenc_jax.testing.subject import draw
from tests import contract_test
from tests.attention.ring_test import same
from tests.attention.splash_test import loss

LENGTH, HEADS, KV_HEADS, WIDTH = 12, 4, 2, 8
TEXTS = {
    'one text': dict(),
    'padding behind': dict(valid=np.arange(LENGTH)[None] < np.array([[9], [LENGTH]])),
    'padding in front': dict(valid=np.arange(LENGTH)[None] >= np.array([[3], [0]])),
    'one document': dict(segment=np.full((2, LENGTH), 5)),
    'packed': dict(segment=np.repeat([[0, 1], [0, 0]], LENGTH // 2, axis=1)),
    'packed and padded': dict(
        segment=np.repeat([[0, 1, 2], [0, 0, 4]], LENGTH // 3, axis=1),
        valid=np.arange(LENGTH)[None] % np.array([[LENGTH], [LENGTH - 2]]) >= 1,
    ),
}
BY_SWEEP = {  # known when the program runs
    ('nope() | prefix(length=4)', 'packed'), ('nope() | prefix(length=4)', 'padding in front'),
    ('nope() | prefix(length=4)', 'packed and padded'),
}  # fmt: skip


@pytest.fixture
def by_jax(monkeypatch):
    """The kernel by operations of JAX, and a CPU that takes what is made for a GPU."""
    chosen = jax.lax.platform_dependent
    choose = lambda *given, **ways: ways['cuda']() if 'cuda' in ways else chosen(*given, **ways)
    monkeypatch.setattr(jax.lax, 'platform_dependent', choose)
    return functools.partial(cudnn._attend, implementation='xla')


def inputs(dtype=jnp.float32, width=WIDTH, length=LENGTH):
    heads = enumerate((HEADS, KV_HEADS, KV_HEADS))
    return [draw(n, 2, length, count, width).astype(dtype) for n, count in heads]


def refusal(encoding, qkv, tok):
    q, k, v = qkv
    return library.refusal(encoding, q, k, v, tok)


def test_what_is_taken_is_collected(some_version, monkeypatch):
    def taken(platform, spec='nope()', text='one text', **options):
        encoding = pj.make(spec, causal=True, heads=HEADS)
        tok = pj.Tokens.of(length=LENGTH, **TEXTS[text])
        run = lambda *qkv: sharded_attend(encoding, *qkv, tok, tok, **options)
        with made_for(platform), library.taken() as found:
            jax.eval_shape(run, *inputs(jnp.bfloat16))
        return list(found)

    assert taken('cuda') == ['cuDNN']
    blocks = 'in blocks (a kernel of this library is the default on sm_80, sm_90, v5e, v5p, and '
    blocks += 'this is no device that is known)'
    where = 'where every row is one document with padding at its ends, else'
    assert taken('cuda', text='packed') == [f'cuDNN {where} with a mask of all pairs']
    assert taken('cuda', 'prefix(length=4)', 'packed') == [f'cuDNN {where} {blocks}']
    monkeypatch.setattr(cudnn, '_MASK_BYTES', 0)
    assert taken('cuda', text='packed') == [f'cuDNN {where} {blocks}']
    assert taken('cuda', 'alibi()') == [f"{blocks}, because alibi opens the door 'logits'"]
    assert taken('cuda', block=4) == ['in blocks, because a block size is given']
    assert taken('cuda', implementation='blocked') == taken('cpu') == []
    with jax.set_mesh(make_mesh(data=1, sequence=2, devices=jax.devices()[:2])):
        assert taken('cuda') == ['in blocks, because the sequence is cut over devices']
        assert taken('cuda', 'alibi()') == ["in blocks, because alibi opens the door 'logits'"]


@pytest.mark.full_but_one
@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize(
    'spec', ['nope() | window(size=5)', 'nope()', 'nope() | full()', 'nope() | prefix(length=4)']
)
def test_results_and_gradients(spec, text, by_jax, monkeypatch):
    encoding, tok = pj.make(spec, causal=True), pj.Tokens.of(length=LENGTH, **TEXTS[text])
    given, cotangent = inputs(), draw(9, 2, LENGTH, HEADS, WIDTH)
    expected = loss(encoding, tok, cotangent, implementation='blocked')(*given)
    # Not a number where the kernel computes what it must not.
    factor = jnp.nan if (spec, text) in BY_SWEEP else 1.0
    wrong = lambda *arguments, **options: by_jax(*arguments, **options) * factor
    monkeypatch.setattr(cudnn, '_attend', wrong)
    with made_for('cuda'):
        assert refusal(encoding, given, tok) is None
        same(loss(encoding, tok, cotangent)(*given), expected)


@pytest.mark.parametrize('text', ['packed', 'packed and padded'])
def test_several_documents_go_through_the_kernel(text, by_jax, monkeypatch):
    encoding, tok = pj.make('nope()', causal=True), pj.Tokens.of(length=LENGTH, **TEXTS[text])
    given = inputs()
    real = np.broadcast_to(True if tok.valid is None else tok.valid, (2, LENGTH))
    attend = lambda: np.asarray(pj.attend(encoding, *given, tok, tok))[real]
    expected = attend()
    twice = lambda *arguments, mask=None: by_jax(*arguments, mask=mask) * (1 if mask is None else 2)
    monkeypatch.setattr(cudnn, '_attend', twice)
    with made_for('cuda'):
        np.testing.assert_allclose(attend(), 2 * expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'spec, size',
    [('nope()', (1, 1, 1, 1)), ('nope() | full()', (1, 1, 1, 1)), ('window(size=5)', (2, 1, 2, 1))],
)
def test_several_documents_lower(spec, size, some_version):
    mesh = AbstractMesh(size, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    encoding, tok = pj.make(spec, causal=True), pj.Tokens.of(length=LENGTH, **TEXTS['packed'])
    given = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in inputs()]
    with made_for('cuda'), jax.sharding.use_abstract_mesh(mesh):
        text = loss(encoding, tok, 1.0).trace(*given).lower(lowering_platforms=('cuda',)).as_text()
    assert '@__cudnn$fmhaScaleBiasSoftmax(' in text
    assert '@__cudnn$fmhaScaleBiasSoftmaxBackward(' in text


@pytest.mark.parametrize('on_mesh', [False, True])
def test_it_lowers(on_mesh, some_version):
    size = (2, 1, 2, 1) if on_mesh else (1, 1, 1, 1)
    mesh = AbstractMesh(size, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    tok = pj.Tokens.of(valid=TEXTS['padding behind']['valid'])
    encoding = pj.make('window(size=5)', causal=True)
    given = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in inputs()]
    with made_for('cuda'), jax.sharding.use_abstract_mesh(mesh):
        text = loss(encoding, tok, 1.0).trace(*given).lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('@__cudnn$fmhaSoftmax(') == text.count('@__cudnn$fmhaSoftmaxBackward(') == 1
    assert '\\22mask_type\\22: \\22PADDING_CAUSAL\\22' in text
    assert '\\22sliding_window_length\\22: 5' in text


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('entry', contract_test.ENTRIES, ids=contract_test.id_of)
def test_every_encoding_has_an_answer(entry, platform, some_version):
    """Whether a kernel of JAX serves is known while a program is traced, whatever the encoding."""
    graphdef, state = nnx.split(contract_test.make(entry))
    shape = jax.ShapeDtypeStruct((1, 128, HEADS, 64), jnp.bfloat16)
    tok = pj.Tokens.of(length=128)

    def ask(state, q):
        encoding = nnx.merge(graphdef, state)
        mesh = AbstractMesh((1,), ('data',), axis_types=(AxisType.Manual,))
        with made_for(platform), jax.sharding.use_abstract_mesh(mesh):
            assert isinstance(library.refusal(encoding, q, q, q, tok), str | None)

    jax.eval_shape(ask, state, shape)


def test_a_program_can_be_made_for_a_cpu_too(some_version):
    """On a machine with a GPU, arrays may lie on the CPU."""
    encoding, tok = pj.make('nope()', causal=True), pj.Tokens.of(length=LENGTH)
    given = inputs(jnp.bfloat16)
    with made_for('cuda'):
        assert refusal(encoding, given, tok) is None
        found = jax.jit(lambda *qkv: pj.attend(encoding, *qkv, tok, tok))(*given)
    expected = pj.attend(encoding, *given, tok, tok, implementation='dense')
    close = dict(atol=2e-2, rtol=0)
    np.testing.assert_allclose(found.astype('float32'), expected.astype('float32'), **close)


OF_LIBRARIES = {'cuda': r'__cudnn\$\w+', 'tpu': r'splash_mha_(?:fwd|dq|dkv)'}


@pytest.mark.full
@pytest.mark.parametrize('platform, kernels_of_a_layer', [('cuda', 2), ('tpu', 3)])
def test_a_whole_model_takes_the_kernels_of_jax(platform, kernels_of_a_layer, some_version):
    """Forward and backward, on devices that cut rows and heads; layers are scanned."""
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    how: dict[str, Any] = dict(mesh=mesh, length=128, head_dim=64, dtype='bfloat16')
    how['implementation'] = ''
    lowered = lambda spec: kernel_table.model(spec, platform, **how).as_text()
    names = set(re.findall(OF_LIBRARIES[platform], lowered('rope() | window(size=32)')))
    assert len(names) == kernels_of_a_layer, names
    assert not re.findall(OF_LIBRARIES[platform], lowered('alibi()'))


@pytest.mark.parametrize(
    'change, reason',
    [
        (dict(spec='alibi()'), "alibi opens the door 'logits'"),
        (dict(spec='window(size=3) | prefix(length=3)'), 'cuDNN knows one window or one prefix'),
        (dict(spec='window(size=3) | full()'), 'a window of cuDNN is causal'),
        (dict(dtype=jnp.float32), 'Q must be fp16/bf16'),
        (dict(width=12), 'The head dim must be <= 128 and a multiple of 8, but got 12'),
        (dict(length=1), 'one query'),
    ],
)
def test_what_it_refuses(change, reason, some_version):
    given = dict(spec='nope()', dtype=jnp.bfloat16, length=LENGTH, width=WIDTH) | change
    encoding = pj.make(given.pop('spec'), heads=HEADS, head_dim=WIDTH, causal=True)
    with made_for('cuda'):
        tok = pj.Tokens.of(length=given['length'])
        assert reason in refusal(encoding, inputs(**given), tok)


def test_without_cudnn_the_sweep_runs():
    encoding, tok = pj.make('nope()', causal=True), pj.Tokens.of(length=LENGTH)
    with made_for('cuda'):
        assert refusal(encoding, inputs(jnp.bfloat16), tok) == 'cuDNN is not detected.'

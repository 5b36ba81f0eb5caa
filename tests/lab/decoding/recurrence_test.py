"""Segments with memory: one long pass in pieces, where gradients stop, how long the memory is,
errors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding.recurrence import read_segment, segment_losses
from posenc_jax.lab.model.losses import target_losses
from posenc_jax.protocol.tokens import Tokens
from tests.refusals import check_refused
from tests.small_models import small_model

B, L, VOCAB = 2, 14, 11
TEXT = np.random.default_rng(0).integers(VOCAB, size=(B, L + 1), dtype=np.int32)
TOLERANCE = 2e-5


def build(encoding, **fields):
    """A model whose encoding is off its zeros, layers different."""
    sizes = dict(vocab_size=VOCAB, train_len=8, layers=2, width=16, heads=4, kv_heads=2, head_dim=4)
    model = small_model(encoding=encoding, **{**sizes, **fields})
    for number, block in enumerate(model.blocks):
        for part in block.encodings:
            state = nnx.state(part, nnx.Param)
            moved = lambda leaf: (
                leaf
                + 0.3 * np.random.default_rng(number).standard_normal(leaf.shape, dtype=np.float32)
            )
            nnx.update(part, jax.tree.map(moved, state))
    return model


compiled = jax.jit(read_segment, static_argnames='length')
one_pass = jax.jit(lambda model, text, tok=None: model(text, tok))
losses_of = jax.jit(target_losses)


def read(model, sizes, length, toks=None):
    """Logits of the text in segments of these sizes."""
    out, memory, start = [], None, 0
    for number, size in enumerate(sizes):
        tok = None if toks is None else toks.slice(start, size)
        logits, memory = compiled(
            model, TEXT[:, start : start + size], memory, length=length, tok=tok
        )
        out.append(np.asarray(logits))
        start += size
    return np.concatenate(out, axis=1), memory


ENCODINGS = [
    'alibi()',
    'rope()',
    'transformer_xl()',
    'path(rank=4)',
    'rcmha(max_len=16)',
    'tra()',
    'conflator()',
]


@pytest.mark.full_but_one
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_segments_with_all_of_the_past_are_one_pass(encoding):
    model = build(encoding)
    tok = None
    if encoding == 'conflator()':
        tok = Tokens.of(
            positions=np.stack([np.arange(L), np.arange(L) % 3, np.arange(L) // 3], -1)[None]
        )
    out, memory = read(model, [5, 9], L, tok)
    np.testing.assert_allclose(out, one_pass(model, TEXT[:, :L], tok), atol=TOLERANCE)
    assert memory.rows.shape == (2, B, L, 16)


def test_a_pattern_of_encodings_keeps_the_order_of_layers():
    model = build('', pattern=('rope()', 'alibi()'), layers=4)
    np.testing.assert_allclose(
        read(model, [5, 9], L)[0], one_pass(model, TEXT[:, :L]), atol=TOLERANCE
    )


@pytest.mark.full
def test_documents_and_padding():
    model, cut = build('transformer_xl()'), 6
    valid = np.arange(L) >= np.array([[0], [2]])
    tok = Tokens.of(segment=np.tile(np.arange(L) >= cut, (B, 1)).astype(int), valid=valid)
    out, whole = read(model, [4, 10], L, tok)[0], np.asarray(one_pass(model, TEXT[:, :L], tok))
    np.testing.assert_allclose(out[valid], whole[valid], atol=TOLERANCE)


@pytest.mark.full
def test_the_memory_is_as_long_as_is_said():
    """One layer sees a window: what is kept decides, and nothing before it."""
    model = build('alibi()', layers=1)
    for length in (0, 3, 8):
        out, memory = read(model, [4, 4, 6], length)
        start = 8 - min(length, 8)
        expected = np.asarray(one_pass(model, TEXT[:, start:L]))[:, 8 - start :]
        np.testing.assert_allclose(out[:, 8:], expected, atol=TOLERANCE)
        assert memory.length == length
    assert memory.tokens.index.tolist() == [[6, 7, 8, 9, 10, 11, 12, 13]]


@pytest.mark.full
def test_memory_reaches_farther_than_its_length_through_the_layers():
    """The paper's claim: with N layers the context grows with N times the length of the memory."""
    changed = (TEXT + (np.arange(L + 1) == 0)).astype(np.int32) % VOCAB

    def reach(layers):
        model = build('transformer_xl()', layers=layers)
        outs = []
        for text in (TEXT, changed):
            memory, out = None, []
            for start in range(0, 12, 2):
                logits, memory = compiled(model, text[:, start : start + 2], memory, length=2)
                out.append(np.asarray(logits))
            outs.append(np.concatenate(out, axis=1))
        moved = np.abs(outs[0] - outs[1]).max((0, 2)) > 0
        return int(np.flatnonzero(moved).max())

    assert reach(1) == 3 and reach(3) == 7


@pytest.mark.full
def test_no_gradient_passes_the_memory():
    model = build('transformer_xl()')
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def late_loss(params, memory_too):
        own = nnx.merge(graphdef, params, rest)
        memory = read_segment(own if memory_too else model, TEXT[:, :6], length=6)[1]
        return (read_segment(own, TEXT[:, 6:L], memory, length=6)[0] ** 2).sum()

    both, one = (
        jax.tree.leaves(jax.jit(jax.grad(late_loss), static_argnums=1)(params, flag))
        for flag in (True, False)
    )
    for ours, theirs in zip(both, one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    rows = compiled(model, TEXT[:, :6], length=6)[1]
    through = jax.jit(
        jax.grad(
            lambda r: (
                read_segment(model, TEXT[:, 6:L], dataclasses.replace(rows, rows=r), length=6)[0]
                ** 2
            ).sum()
        )
    )(rows.rows)
    assert not np.asarray(through).any() and all(np.asarray(leaf).any() for leaf in both)


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [0, 4])
def test_losses_by_segments(length):
    model = build('transformer_xl()')
    in_segments = jax.jit(segment_losses, static_argnames=('segment', 'length'))
    losses = np.asarray(in_segments(model, TEXT[:, :L], TEXT[:, 1:], segment=4, length=length))
    expected = losses_of(read(model, [4, 4, 4, 2], length)[0], TEXT[:, 1:])[0]
    np.testing.assert_allclose(losses, expected, atol=TOLERANCE)
    apart = one_pass(model, TEXT[:, 4:8])
    alone = np.abs(losses_of(apart, TEXT[:, 5:9])[0] - losses[:, 4:8]).max() < TOLERANCE
    assert alone == (length == 0)


def test_dropout_only_with_a_key():
    model = build('alibi()', dropout=0.5)
    plain = [compiled(model, TEXT[:, :4], length=4)[0] for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    dropped = compiled(model, TEXT[:, :4], length=4, key=jax.random.key(1))[0]
    assert np.abs(dropped - plain[0]).max() > 0.01


def test_wrong_input():
    model = build('alibi()')
    memory = compiled(model, TEXT[:, :6], length=6)[1]
    calls = {
        'holds 6 tokens, more than the given length of 4': lambda: read_segment(
            model, TEXT[:, 6:], memory, length=4
        ),
        'at least 0, got -1': lambda: read_segment(model, TEXT, length=-1),
        r'\(2, 2, 6, 16\) does not fit 2 layers, 1 rows': lambda: read_segment(
            model, TEXT[:1, 6:], memory, length=6
        ),
        'of the memory have.*of the segment': lambda: read_segment(
            model, TEXT[:, 6:], memory, length=6, tok=Tokens.of(valid=jnp.ones((B, L - 5), bool))
        ),
        "kind 'encoder'": lambda: read_segment(build('alibi()', kind='encoder'), TEXT, length=4),
        'at least one token, got 0': lambda: segment_losses(
            model, TEXT[:, :L], TEXT[:, 1:], segment=0, length=4
        ),
    }
    check_refused(calls)


@pytest.mark.parametrize(
    'spec', ['bipe(separators=(1, 3)) | rope()', 'reverse_pe() | sinusoidal()']
)
def test_positions_of_whole_texts_are_refused(spec):
    with pytest.raises(
        ValueError, match=f'{spec.split("(")[0]} finds positions from the whole text'
    ):
        read_segment(build(spec), TEXT[:, :4], length=4)

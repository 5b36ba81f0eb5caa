"""Attention entropy: streamed sums against whole rows of probabilities, and what cutting a text
into pieces does to it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.__main__ import main
from posenc_jax.lab.analyse.attention_entropy import (
    attention_entropy,
    row_entropy,
    summed_entropies,
)
from posenc_jax.lab.analyse.pieces_entropy import entropy_of_pieces
from posenc_jax.lab.decoding.contexts import QUERY
from posenc_jax.lab.decoding.parallel_context_entropy import SelectedAttention, select_pieces
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import ids
from tests.small_models import kept_model, small_model

TOKENS = ids(2, 20)
SIZES = dict(vocab_size=13, train_len=16, layers=2, width=16, heads=2)
model_of = functools.partial(kept_model, **SIZES)

test_golden = golden_suite(
    'attention_entropy',
    {'entropy': lambda around: row_entropy(jnp.array(around['rows']))},
    atol=1e-6,
)


def draw(*shape):
    return (2 * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(2)))


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [3, 128])
def test_it_is_that_of_whole_rows_after_the_selection(block):
    q, k = draw(2, 20, 2, 8)
    segment = jnp.array([[0] * 2 + [1] * 5 + [2] * 5 + [3] * 3 + [QUERY] * 5])
    index = jnp.arange(20)[None]
    tok = Tokens(index, index, rank=index, segment=segment)
    select = SelectedAttention(count=3, keep=1)
    encoding, tq = select.choose(pj.make('causal()'), q, k, tok, tok)
    counted = jnp.broadcast_to(segment == QUERY, (2, 20)).at[1, -1].set(False)
    s = scaled_dot_product(*(jnp.swapaxes(a, 1, 2) for a in (q, k)))
    p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((20, 20), bool)), s, -jnp.inf))[:, :, -5:]
    entropies = row_entropy(select_pieces(p, segment[0], 3, keep=1))
    expected = jnp.where(counted[:, None, -5:], entropies, 0.0).sum((0, 2))
    found = summed_entropies(encoding, q, k, tq, tok, counted, block)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize('spec', ['nope()', 'window(size=4) | nope()'])
def test_it_is_divided_by_ln_of_the_keys_that_a_row_sees(spec):
    """Against a loop over rows; the keys are those in front, up to the window, without padding."""
    length, padding, heads = 7, 2, 2
    q, k = draw(1, length, heads, 4)
    valid = np.arange(length)[None] >= padding
    tok = Tokens.of(valid=jnp.asarray(valid))
    encoding = pj.make(spec, heads=heads, head_dim=4, causal=True)
    expected, window = np.zeros(heads), 4 if 'window' in spec else length
    for head in range(heads):
        for i in range(padding, length):
            keys = range(max(padding, i - window + 1), i + 1)
            s = [float(np.dot(q[0, i, head], k[0, j, head])) / 2 for j in keys]
            p = np.exp(s) / np.exp(s).sum()
            if len(p) > 1:
                expected[head] += -(p * np.log(p)).sum() / np.log(len(p))
    found = summed_entropies(encoding, q, k, tok, tok, jnp.asarray(valid), 3)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.full
def test_even_attention_is_1_and_a_row_that_sees_itself_alone_is_0():
    model = small_model(**SIZES, encoding='nope()')
    for block in model.blocks:
        block.attention.w_q[...] = jnp.zeros_like(block.attention.w_q[...])
    np.testing.assert_allclose(attention_entropy(model, TOKENS).relative, 19 / 20, rtol=1e-5)
    first = attention_entropy(model, TOKENS, rows=jnp.arange(20)[None] == 0)
    assert first.rows == 2 and np.abs(first.total).max() < 1e-6


@pytest.mark.full
def test_chosen_rows_add_up_to_all():
    model, at = model_of(encoding='alibi()'), jnp.arange(20)[None]
    first, rest = (attention_entropy(model, TOKENS, rows=rows) for rows in (at < 7, at >= 7))
    whole = attention_entropy(model, TOKENS)
    np.testing.assert_allclose(first.merge(rest).heads, whole.heads, atol=1e-6)


@pytest.mark.full
def test_one_piece_is_the_text_as_it_is():
    model, query = model_of(encoding='rope()'), jnp.arange(20)[None] >= 14
    found = entropy_of_pieces(model, TOKENS, pieces=1, query=6)
    expected = attention_entropy(model, TOKENS, rows=query)
    np.testing.assert_allclose(found.entropy.heads, expected.heads, atol=1e-5)
    log_p = jax.nn.log_softmax(model(TOKENS)[:, 14:-1])
    loss = -float(jnp.take_along_axis(log_p, TOKENS[:, 15:, None], -1).mean())
    assert found.loss == pytest.approx(loss, abs=1e-5)


@pytest.mark.full
def test_selection_lowers_the_entropy():
    """The paper's claim."""
    pieces = dict(pieces=4, query=6, sink=2)
    every, best = (
        entropy_of_pieces(model_of(encoding='rope()'), TOKENS, **pieces, keep=keep)
        for keep in (None, 1)
    )
    assert (best.entropy.heads < every.entropy.heads - 0.05).all()


def test_the_command_needs_a_run_and_numbers(capsys):
    for options, message in (([], 'give --run=RUN'), (['--run=none', '--pieces=1,x'], "got '1,x'")):
        assert main(['attention_entropy', *options]) == 2 and message in capsys.readouterr().err

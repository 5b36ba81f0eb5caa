"""PAPEFT: location codes, soft tokens that are nothing at first, shuffled documents, and what of a
model is trained.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.runs.tuned import trained
from posenc_jax.lab.tasks.retrieval import KVSlots
from posenc_jax.methods.papeft import (
    PAPEFT,
    papeft_code,
    papeft_documents,
    papeft_locations,
    papeft_prompts,
)
from tests.golden_files import golden, golden_suite
from tests.methods.models import descend, model_of, read
from tests.refusals import refused

GOLDEN = golden('papeft')['values']
EMPTY = 12
SPEC = 'papeft() | rope()'
small = functools.partial(model_of, vocab_size=13, train_len=16, layers=1)


def adapted():
    """A model whose adapter has been trained: its codes are not zero."""
    model = small(SPEC)
    part = model.shared[0]
    part.w2[...] = 0.5 * jax.random.normal(jax.random.key(7), part.w2.shape)
    return model


def prompts(rows=2, documents=3, width=2, question=3, seed=0):
    """Token ids, and `Tokens` with their locations."""
    draw = np.random.default_rng(seed).integers
    written = draw(0, 12, (rows, documents, width)), draw(0, 12, (rows, question))
    tokens, positions = papeft_prompts(*written, EMPTY)
    return jnp.asarray(tokens), pj.Tokens.of(positions=positions)


def locations(count):
    return papeft_locations(1 + jnp.arange(count), jnp.full(count, count))


def codes(_):
    w1 = jnp.zeros((1, 64)).at[0, 0].set(0.5).at[0, 32].set(1.0)
    return papeft_code(locations(4)[None], w1, jnp.array([[2.0], [-1.0]]))[0]


test_golden = golden_suite('papeft', atol=1e-6) | {
    'locations_of_4': lambda _: locations(4),
    'locations_of_1': lambda _: locations(1),
    'codes_of_4': (codes, {'atol': 2e-5}),  # 1000 l is rounded to 3e-5
}


@pytest.mark.full
def test_soft_tokens_are_zero_vectors_at_first_and_nothing_else_changes():
    model, base, (tokens, tok) = small(SPEC), small('rope()'), prompts()
    nnx.update(base, nnx.state(model, lambda path, _: path[0] != 'shared'))
    x, placed = model.embed(tokens, model.place(tok)), pj.Tokens.of(length=tokens.shape[1])
    plain = base.embed(tokens, base.place(placed))
    np.testing.assert_array_equal(x, jnp.where((tokens == EMPTY)[..., None], 0.0, plain))
    layer = lambda x, number, layer_type, block: (
        block(x, placed, base.encoding(layer_type, block)),
        None,
    )
    expected = jax.jit(lambda x: base.norm(base.scan_layers(layer, x)[0]))(x)
    hidden = jax.jit(lambda tokens: model.hidden(tokens, tok))(tokens)
    np.testing.assert_allclose(expected, hidden, atol=1e-5)
    # Without documents nothing changes.
    np.testing.assert_allclose(read(model, tokens), read(base, tokens), atol=1e-5)


@pytest.mark.full
def test_codes_follow_the_slot_and_stand_at_their_own_position():
    model, (tokens, tok) = adapted(), prompts()
    (placed,) = model.place(tok)
    order = np.arange(tokens.shape[1])
    np.testing.assert_array_equal(placed.pos, np.broadcast_to(order, tokens.shape))
    x = np.asarray(model.embed(tokens, (placed,)))
    soft = x[tokens == EMPTY].reshape(2, 3, 16)
    np.testing.assert_array_equal(soft[0], soft[1])  # other documents, the same slots
    assert np.abs(soft[0, :, None] - soft[0, None])[~np.eye(3, dtype=bool)].max(-1).min() > 1e-2
    part = model.shared[0]
    expected = papeft_code(jnp.array([[0.0, 0.5, 1.0]]), part.w1[...], part.w2[...])[0]
    np.testing.assert_allclose(soft[0], expected, atol=1e-6)


def test_shuffling_can_be_undone_and_keeps_the_right_document():
    rng = np.random.default_rng(0)
    documents, gold = rng.integers(0, 99, (40, 5, 3)), rng.integers(0, 5, 40)
    shuffled, slots, order = papeft_documents(rng, documents, gold)
    rows = np.arange(40)
    np.testing.assert_array_equal(shuffled[rows, slots], documents[rows, gold])
    restored = shuffled[rows[:, None], np.argsort(order, axis=1)]
    np.testing.assert_array_equal(restored, documents)
    np.testing.assert_array_equal(order[rows, slots], gold)
    assert (order != np.arange(5)).any() and set(slots.tolist()) == set(range(5))
    one, two = (papeft_prompts(own, gold[:, None], EMPTY)[1] for own in (documents, shuffled))
    np.testing.assert_array_equal(one, two)  # places are those of slots


def test_the_task_writes_the_same_prompts():
    draw, options = np.random.default_rng, dict(keys=6, values=4, words=1)
    task = KVSlots(**options, slot=0, ids='locations')
    batch = task.sample(draw(0), 3, 4)
    documents, question, answer = KVSlots(**options).documents(draw(0), 3, 4)
    tokens, positions = papeft_prompts(documents, question, task.empty)
    np.testing.assert_array_equal(batch['tokens'], tokens)
    np.testing.assert_array_equal(batch['positions'], positions)
    np.testing.assert_array_equal(batch['targets'][:, -1:], answer)


def test_only_the_adapter_is_trained():
    model = small(SPEC)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    sizes = jax.tree.map(lambda a, on: a.size * on, params, trained(model, 'encodings'))
    assert sum(jax.tree.leaves(sizes)) == GOLDEN['parameters_at_width_16'] == 32 * 64 + 16 * 32
    part = model.shared[0]
    assert isinstance(part, PAPEFT) and part.w1.shape == (32, 64) and part.w2.shape == (16, 32)


@pytest.mark.full
def test_a_frozen_model_learns_from_it_in_which_slot_a_document_lies():
    """The question is not about the documents but about the slot of the one that is not 0: only the
    soft tokens can say it.
    """
    is_adapter = lambda path, _: path[0] == 'shared'
    graphdef, adapter, frozen = nnx.split(
        small(SPEC, width=32), nnx.All(nnx.Param, is_adapter), ...
    )
    slots = np.random.default_rng(0).integers(0, 3, 64)
    documents = np.where(np.arange(3) == slots[:, None], 5, 0)[..., None]
    tokens, positions = papeft_prompts(documents, np.full((64, 1), 7), EMPTY)
    tokens, tok = jnp.asarray(tokens), pj.Tokens.of(positions=positions)

    def loss(adapter, _):
        out = nnx.merge(graphdef, adapter, frozen)(tokens, tok, last=1)[:, 0]
        return optax.softmax_cross_entropy_with_integer_labels(out, jnp.asarray(slots)).mean()

    gradient = jax.jit(jax.grad(loss))(adapter, None)
    assert not gradient['shared'][0]['w1'][...].any() and gradient['shared'][0]['w2'][...].any()
    _, losses = descend(loss, adapter, steps=150, rate=1e-2)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.full
def test_slots_of_padding_do_not_matter():
    tok = pj.Tokens.of(positions=[[[0, 1, 1], [1, 0, 1], [0, -1, 0]]], valid=[[True, True, False]])
    assert pj.make('papeft()', model_dim=8).place(tok).pos.tolist() == [[0, 1, 0]]


def changed(row, token, component):
    """The positions of prompts of three documents, with a 4 in the place of one number."""
    positions = np.array(prompts()[1].pos)
    positions[row, token, component] = 4
    return positions


DOCUMENTS, ONE = np.zeros((2, 3, 1), int), np.zeros((3, 1), int)
place = lambda pos: pj.make('papeft()', model_dim=8).place(pj.Tokens.of(positions=pos))
shuffled = lambda *given: papeft_documents(np.random.default_rng(0), *map(np.array, given))


test_wrong_input = refused() | {
    r'\[B, L, 3\].* got int32 \(2, 12, 2\)': lambda: place(prompts()[1].pos[..., :2]),
    'got float32': lambda: place(prompts()[1].pos * 1.0),
    r'0 .. n, got 4 of 3 documents': lambda: place(changed(1, 3, 1)),
    'all tokens of a row say the same n, got 3 and 4 in row 1': lambda: place(changed(1, 5, 2)),
    'right slots are integers, got float64': lambda: shuffled(DOCUMENTS, [0.5, 1.5]),
    r'papeft_documents takes documents \[E, n, W\], got \(3, 1\)': (
        lambda: shuffled(DOCUMENTS[0], [0])
    ),
    r'0 .. 2, got 0 .. 3': lambda: shuffled(DOCUMENTS * 1.0, [0, 3]),
    r'papeft_prompts takes documents \[E, n, W\]': lambda: papeft_prompts(ONE, ONE, 9),
    r'question \[E, Q\] for 2 examples, got \(3, 1\)': lambda: papeft_prompts(DOCUMENTS, ONE, 9),
}

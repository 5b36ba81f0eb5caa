"""PAPEFT: location codes, soft tokens that are nothing at first, shuffled documents, and what of a
model is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.runs.tuned import trained
from posenc_jax.lab.tasks.retrieval import KVSlots
from posenc_jax.methods.papeft import (
    PAPEFT,
    document_locations,
    located_prompts,
    location_code,
    shuffled_documents,
)
from tests.golden_files import golden

GOLDEN = golden('papeft')['values']
EMPTY = 12
BASE = dict(vocab_size=13, train_len=16, layers=1, width=16, heads=2, encoding='papeft() | rope()')


def model_of(trained_adapter=False, **fields):
    model = Transformer(TransformerConfig(**{**BASE, **fields}), rngs=nnx.Rngs(0))
    if trained_adapter:
        part = model.shared[0]
        part.w2[...] = 0.5 * jax.random.normal(jax.random.key(7), part.w2.shape)
    return model


def prompts(rows=2, documents=3, width=2, question=3, seed=0):
    rng = np.random.default_rng(seed)
    return located_prompts(
        rng.integers(0, 12, (rows, documents, width)), rng.integers(0, 12, (rows, question)), EMPTY
    )


def test_golden_locations_and_codes():
    for count in (4, 1):
        slots = 1 + jnp.arange(count)
        found = document_locations(slots, jnp.full(count, count))
        np.testing.assert_allclose(found, GOLDEN[f'locations_of_{count}'], atol=1e-6)
    w1 = jnp.zeros((1, 64)).at[0, 0].set(0.5).at[0, 32].set(1.0)
    code = location_code(
        document_locations(1 + jnp.arange(4), jnp.full(4, 4))[None], w1, jnp.array([[2.0], [-1.0]])
    )
    np.testing.assert_allclose(
        code[0], GOLDEN['codes_of_4'], atol=2e-5
    )  # 1000 l is rounded to 3e-5


@pytest.mark.full
def test_soft_tokens_are_zero_vectors_at_first_and_nothing_else_changes():
    model, (tokens, positions) = model_of(), prompts()
    tok = pj.Tokens.of(positions=positions)
    x = model.embed(jnp.asarray(tokens), model.place(tok))
    base = model_of(encoding='rope()')
    nnx.update(base, nnx.state(model, lambda path, _: path[0] != 'shared'))
    plain = base.embed(jnp.asarray(tokens), base.place(pj.Tokens.of(length=tokens.shape[1])))
    np.testing.assert_array_equal(x, jnp.where((tokens == EMPTY)[..., None], 0.0, plain))
    placed = pj.Tokens.of(length=tokens.shape[1])
    layer = lambda x, number, layer_type, block: (
        block(x, placed, base.encoding(layer_type, block)),
        None,
    )
    expected = jax.jit(lambda x: base.norm(base.scan_layers(layer, x)[0]))(x)
    np.testing.assert_allclose(
        expected, jax.jit(lambda tokens: model.hidden(tokens, tok))(tokens), atol=1e-5
    )
    read = jax.jit(lambda model, tokens: model(tokens))
    np.testing.assert_allclose(
        read(model, tokens), read(base, tokens), atol=1e-5
    )  # no documents, no change


@pytest.mark.full
def test_codes_follow_the_slot_and_stand_at_their_own_position():
    model, (tokens, positions) = model_of(True), prompts()
    placed = model.place(pj.Tokens.of(positions=positions))[0]
    np.testing.assert_array_equal(
        placed.pos, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    )
    x = np.asarray(model.embed(jnp.asarray(tokens), (placed,)))
    soft = x[tokens == EMPTY].reshape(2, 3, 16)
    np.testing.assert_array_equal(soft[0], soft[1])  # other documents, the same slots
    assert np.abs(soft[0, :, None] - soft[0, None])[~np.eye(3, dtype=bool)].max(-1).min() > 1e-2
    part = model.shared[0]
    np.testing.assert_allclose(
        soft[0],
        location_code(jnp.array([[0.0, 0.5, 1.0]]), part.w1[...], part.w2[...])[0],
        atol=1e-6,
    )


def test_shuffling_can_be_undone_and_keeps_the_right_document():
    rng = np.random.default_rng(0)
    documents, gold = rng.integers(0, 99, (40, 5, 3)), rng.integers(0, 5, 40)
    shuffled, slots, order = shuffled_documents(rng, documents, gold)
    rows = np.arange(40)
    np.testing.assert_array_equal(shuffled[rows, slots], documents[rows, gold])
    restored = shuffled[rows[:, None], np.argsort(order, axis=1)]
    np.testing.assert_array_equal(restored, documents)
    np.testing.assert_array_equal(order[rows, slots], gold)
    assert (order != np.arange(5)).any() and set(slots.tolist()) == set(range(5))
    one, two = (
        located_prompts(documents, gold[:, None], EMPTY),
        located_prompts(shuffled, gold[:, None], EMPTY),
    )
    np.testing.assert_array_equal(one[1], two[1])  # places are those of slots


def test_the_task_writes_the_same_prompts():
    task = KVSlots(keys=6, values=4, words=1, slot=0, ids='locations')
    batch = task.sample(np.random.default_rng(0), 3, 4)
    documents, question, answer = KVSlots(keys=6, values=4, words=1).documents(
        np.random.default_rng(0), 3, 4
    )
    tokens, positions = located_prompts(documents, question, task.empty)
    np.testing.assert_array_equal(batch['tokens'], tokens)
    np.testing.assert_array_equal(batch['positions'], positions)
    np.testing.assert_array_equal(batch['targets'][:, -1:], answer)


def test_only_the_adapter_is_trained():
    model = model_of()
    tuned = trained(model, 'encodings')
    sizes = jax.tree.map(
        lambda a, is_tuned: a.size * is_tuned, nnx.to_pure_dict(nnx.state(model, nnx.Param)), tuned
    )
    assert sum(jax.tree.leaves(sizes)) == GOLDEN['parameters_at_width_16'] == 32 * 64 + 16 * 32
    part = model.shared[0]
    assert isinstance(part, PAPEFT) and part.w1.shape == (32, 64) and part.w2.shape == (16, 32)


@pytest.mark.full
def test_a_frozen_model_learns_from_it_in_which_slot_a_document_lies():
    """The question is not about the documents but about the slot of the one that is not 0: only the
    soft tokens can say it.
    """
    model = model_of(width=32)
    is_adapter = lambda path, _: path[0] == 'shared'
    graphdef, adapter, frozen = nnx.split(model, nnx.All(nnx.Param, is_adapter), ...)
    rng = np.random.default_rng(0)
    slots = rng.integers(0, 3, 64)
    documents = np.where(np.arange(3) == slots[:, None], 5, 0)[..., None]
    tokens, positions = located_prompts(documents, np.full((64, 1), 7), EMPTY)
    tokens, tok = jnp.asarray(tokens), pj.Tokens.of(positions=positions)
    optimizer = optax.adam(1e-2)

    def loss(adapter):
        out = nnx.merge(graphdef, adapter, frozen)(tokens, tok, last=1)[:, 0]
        return optax.softmax_cross_entropy_with_integer_labels(out, jnp.asarray(slots)).mean()

    gradient = jax.jit(jax.grad(loss))(adapter)
    assert not gradient['shared'][0]['w1'][...].any() and gradient['shared'][0]['w2'][...].any()

    @jax.jit
    def run(adapter):
        def step(carry, _):
            adapter, state = carry
            value, gradient = jax.value_and_grad(loss)(adapter)
            updates, state = optimizer.update(gradient, state, adapter)
            return (optax.apply_updates(adapter, updates), state), value

        return jax.lax.scan(step, (adapter, optimizer.init(adapter)), None, length=150)[1]

    losses = run(adapter)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.full
def test_soft_tokens_live_in_the_prefix_of_the_cache():
    model, (tokens, positions) = model_of(True), prompts()
    tok = pj.Tokens.of(positions=positions)
    expected, cut = (
        np.asarray(jax.jit(lambda tokens: model(tokens, tok))(tokens)),
        7,
    )  # in the last document
    logits, cache = jax.jit(lambda t: prefill(model, init_cache(model, tok), t))(
        jnp.asarray(tokens[:, :cut])
    )
    np.testing.assert_allclose(logits, expected[:, :cut], atol=1e-5)
    step = jax.jit(lambda cache, token: decode_step(model, cache, token))
    for t in range(cut, tokens.shape[1]):
        logits, cache = step(cache, jnp.asarray(tokens[:, t]))
        np.testing.assert_allclose(logits, expected[:, t], atol=2e-5)


def test_bfloat16_and_other_encodings_beside_it():
    model, (tokens, positions) = (
        model_of(True, dtype='bfloat16', encoding='papeft() | learned_absolute(max_len=16)'),
        prompts(),
    )
    x = model.embed(jnp.asarray(tokens), model.place(pj.Tokens.of(positions=positions)))
    assert x.dtype == jnp.bfloat16


@pytest.mark.full
def test_slots_of_padding_do_not_matter():
    tok = pj.Tokens.of(positions=[[[0, 1, 1], [1, 0, 1], [0, -1, 0]]], valid=[[True, True, False]])
    assert pj.make('papeft()', model_dim=8).place(tok).pos.tolist() == [[0, 1, 0]]


def test_what_cannot_be_is_refused():
    _, positions = prompts()
    part = pj.make('papeft()', model_dim=8)
    place = lambda pos: part.place(pj.Tokens.of(positions=pos))
    more = positions.copy()
    more[1, 3, 1] = 4
    other = positions.copy()
    other[1, 5, 2] = 4
    rng, documents = np.random.default_rng(0), np.zeros((2, 3, 1), int)
    for call, message in [
        (lambda: pj.make('papeft(width=0)', model_dim=8), 'width must be at least 1, got 0'),
        (lambda: place(positions[..., :2]), r'\[B, L, 3\].* got int32 \(2, 12, 2\)'),
        (lambda: place(positions.astype(np.float32)), 'got float32'),
        (lambda: place(more), r'0 .. n, got 4 of 3 documents'),
        (lambda: place(other), 'all tokens of a row say the same n, got 3 and 4 in row 1'),
        (
            lambda: shuffled_documents(rng, documents, np.array([0.5, 1.5])),
            'right slots are integers, got float64',
        ),
        (
            lambda: shuffled_documents(rng, documents[0], np.array([0])),
            r'shuffled_documents takes documents \[E, n, W\], got \(3, 1\)',
        ),
        (
            lambda: located_prompts(documents[0], np.zeros((3, 1), int), 9),
            r'located_prompts takes documents \[E, n, W\]',
        ),
        (
            lambda: located_prompts(documents, np.zeros((3, 1), int), 9),
            r'question \[E, Q\] for 2 examples, got \(3, 1\)',
        ),
        (
            lambda: shuffled_documents(
                np.random.default_rng(0), np.zeros((2, 3, 1)), np.array([0, 3])
            ),
            r'0 .. 2, got 0 .. 3',
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.evaluate.language import evaluate_language
from posenc_jax.lab.evaluate.measurement import exact_match, perplexity, token_accuracy
from posenc_jax.lab.evaluate.scoring import scorer, token_scores
from posenc_jax.lab.evaluate.tasks import evaluate_task, score_rows
from posenc_jax.lab.tasks.copy import Copy
from posenc_jax.lab.tasks.language import BOS
from posenc_jax.lab.tasks.language.vocabulary import Bytes
from posenc_jax.lab.tasks.retrieval import Passkey
from posenc_jax.lab.tasks.retrieval.passkey import KEY
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.small_models import small_model


class Laplace(nnx.Module):
    """Predicts (count + 1) / (n + vocab) from the counts of the tokens in the window so far."""

    def __init__(self, vocab):
        self.vocab = vocab

    def hidden(self, tokens, tok=None, *, key=None):
        counts = jnp.cumsum(jax.nn.one_hot(tokens, self.vocab), axis=1)
        return jnp.log((counts + 1) / (counts.sum(-1, keepdims=True) + self.vocab))

    def logits(self, hidden):
        return hidden


def laplace_nll(context, target, vocab):
    return -math.log((list(context).count(target) + 1) / (len(context) + vocab))


def tiny(encoding, **changes):
    cfg = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=2, encoding=encoding)
    return small_model(**(cfg | changes))


STREAM = np.random.default_rng(0).integers(0, 5, 90)
LENGTHS = (8, 16, 32)


@pytest.mark.full_but_one
@pytest.mark.parametrize('chunk', [1, 3, 8, 100])
def test_logits_in_chunks_equal_logits_at_once(chunk):
    model, rng = tiny('alibi()'), np.random.default_rng(0)
    tokens, targets = jnp.asarray(rng.integers(0, 11, (2, 2, 8)))
    logits = model(tokens)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    nll, correct = token_scores(model, tokens, targets, chunk=chunk)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    np.testing.assert_array_equal(correct, logits.argmax(-1) == targets)


def test_scored_positions_alone_equal_a_choice_from_all():
    model, rng = tiny('alibi()'), np.random.default_rng(0)
    tokens, targets = jnp.asarray(rng.integers(0, 11, (2, 2, 8)))
    at = jnp.asarray([[1, 7, 3], [0, 2, 2]])
    some = scorer(model)(tokens, targets, None, None, at)
    for whole, part in zip(token_scores(model, tokens, targets), some):
        chosen = np.take_along_axis(np.asarray(whole), np.asarray(at), 1)
        np.testing.assert_allclose(part, chosen, rtol=1e-6)


def test_no_logits_of_positions_that_are_not_scored():
    shapes = []

    class Watched(Laplace):
        def logits(self, hidden):
            shapes.append(hidden.shape)
            return hidden

    batch = Passkey(digits=2).sample(np.random.default_rng(0), 5, 40)
    score = lambda *arguments: token_scores(
        Watched(37), *arguments[:3], key=arguments[3], at=arguments[4]
    )
    nll, correct, scored = score_rows(score, batch, rows=2)
    assert nll.shape == correct.shape == scored.shape == (5, 2) and scored.all()
    assert shapes and all(batch * length <= 2 * 2 for batch, length, _ in shapes)


def test_rows_with_fewer_scored_targets_than_others_count_their_own():
    batch = {name: np.zeros((2, 5), int) for name in ('tokens', 'targets')}
    batch['loss_mask'] = np.array([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], np.float32)
    asked = []

    def score(tokens, targets, tok, key, at):
        asked.append(at)
        return np.zeros(at.shape), at == 2

    _, correct, scored = score_rows(score, batch, rows=64)
    (at,) = asked  # no row is read twice
    assert at.shape == (2, 3) and at[0].tolist() == [1, 3, 4] and at[1, 0] == 2
    assert scored.tolist() == [[True] * 3, [True, False, False]]
    assert exact_match(5, np.zeros((2, 3)), correct, scored).value == 0.5


def test_every_length_is_read_at_every_depth():
    places, answers = {}, {}

    def score(tokens, targets, tok, key, at):
        place = np.argmax(np.asarray(tokens) == KEY, axis=1)
        places.setdefault(tokens.shape[1], []).append(set(place.tolist()))
        answers.setdefault(tokens.shape[1], []).append(np.take_along_axis(targets, at, 1))
        return np.zeros(at.shape), np.broadcast_to(place[:, None] > 5, at.shape)

    given = dict(samples=6, rows=lambda width: 6)
    found = evaluate_task(score, Passkey(), (17, 27), **given, depths=(0, 0.5, 1.0))
    assert places == {17: [{0}, {5}, {10}], 27: [{0}, {10}, {20}]}
    cells = [(length, depth) for length in (17, 27) for depth in (0.0, 0.5, 1.0)]
    assert [(m.length, m.depth) for m in found] == cells
    assert [m.value for m in found] == [0, 0, 1, 0, 1, 1] and {m.samples for m in found} == {6}
    # The depth is all that differs.
    assert all((a == b[0]).all() for b in answers.values() for a in b)
    (alone,) = evaluate_task(score, Passkey(), (17,), **given)
    assert alone.depth is None


def test_memory_at_64_times_the_length_is_linear_and_holds_no_whole_logits():
    vocab = 5000
    graphdef, state = nnx.split(tiny('alibi()', vocab_size=vocab))

    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, length), jnp.int32)
        score = jax.jit(lambda state, x: token_scores(nnx.merge(graphdef, state), x, x))
        compiled = score.lower(state, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    at_32, at_64 = temporary(32 * 64), temporary(64 * 64)
    assert at_64 < 2.5 * at_32
    assert at_64 < 4 * vocab * 64 * 64 / 2


def test_one_compilation_for_each_length():
    traces = []

    class Counting(Laplace):
        def hidden(self, tokens, tok=None, *, key=None):
            traces.append(tokens.shape)
            return super().hidden(tokens, tok)

    given = dict(tokens=60, rows=lambda length: 3, stride=4)
    evaluate_language(scorer(Counting(5)), STREAM, LENGTHS, **given)
    assert sorted(traces) == [(3, length) for length in LENGTHS]


def test_perplexity_of_a_uniform_guess():
    nll, all_ = np.full((3, 4), math.log(4)), np.ones((3, 4), bool)
    result = perplexity('sliding', 4, nll, ~all_, all_, bytes_scored=12)
    assert (result.value, result.low, result.high) == pytest.approx((4, 4, 4))
    assert result.bits_per_byte == pytest.approx(2)
    half = perplexity('sliding', 4, nll, ~all_, all_, bytes_scored=6)
    assert half.bits_per_byte == pytest.approx(4)
    assert perplexity('sliding', 4, nll[:1], ~all_[:1], all_[:1], 4).low is None


def test_perplexity_interval_covers_at_its_rate():
    rng = np.random.default_rng(0)
    scored = np.arange(6) < rng.integers(1, 7, (400, 30, 1))
    shared = 1 + rng.exponential(0.5, (400, 30, 1))  # within a window
    nll = shared + rng.exponential(0.5, (400, 30, 6))
    found = [perplexity('sliding', 6, n, s, s, 0) for n, s in zip(nll, scored)]
    covered = np.mean([m.low <= math.exp(2) <= m.high for m in found])
    assert 0.9 < covered < 0.98


def test_perplexity_interval_covers_if_documents_differ():
    """Every document has a loss of its own, which all its windows share."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 5)[:, None] + np.zeros((1, 6), int)  # [W, L]
    ones = np.ones(documents.shape, bool)
    covered = {True: 0, False: 0}
    for _ in range(200):
        own = 1 + rng.exponential(0.5, 40)
        nll = own[documents] + rng.exponential(0.5, documents.shape)
        for by_document in covered:
            known = documents if by_document else None
            found = perplexity('sliding', 6, nll, ones, ones, 0, documents=known)
            covered[by_document] += found.low <= math.exp(2) <= found.high
    assert 0.88 < covered[True] / 200 < 0.99 and covered[False] / 200 < 0.75


def test_the_interval_of_one_document_is_that_of_its_windows():
    nll, ones = np.random.default_rng(0).exponential(1, (9, 4)), np.ones((9, 4), bool)
    alone = perplexity('sliding', 4, nll, ones, ones, 0, documents=np.zeros((9, 4), int))
    assert alone == perplexity('sliding', 4, nll, ones, ones, 0)


def test_beginnings_of_documents_are_scored_but_are_no_bytes():
    stream = np.where(np.arange(33) % 4 == 0, BOS, 0)
    given = dict(tokens=32, rows=lambda length: 2, stride=1, bytes_of=Bytes.bytes_of)
    (result,) = evaluate_language(scorer(Laplace(257)), stream, (8,), ('nonoverlapping',), **given)
    assert result.tokens == 32
    assert result.bits_per_byte == pytest.approx(result.nll * 32 / 24 / math.log(2))


def test_exact_match_needs_every_scored_token_and_has_a_wilson_interval():
    correct = np.ones((10, 6), bool)
    correct[:2, 3] = False
    correct[:, 0] = False  # not scored
    scored = np.arange(6) > np.zeros((10, 1))
    result = exact_match(7, np.full((10, 6), 0.5), correct, scored)
    p, n, z = 0.8, 10, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert result.value == 0.8
    assert (result.token_accuracy, result.nll) == pytest.approx((48 / 50, 0.5))
    ends = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert (result.low, result.high) == pytest.approx(ends)


def test_the_share_of_correct_tokens_has_the_interval_of_a_mean_over_rows():
    right = np.array([5, 3, 4, 4])
    correct, scored = np.arange(6) < right[:, None], np.arange(6) < np.full((4, 1), 5)
    result = token_accuracy(7, np.zeros((4, 6)), correct, scored)
    half = 1.96 * np.std(right / 5, ddof=1) / 4**0.5
    assert result.value == result.token_accuracy == pytest.approx(0.8)
    assert (result.low, result.high) == pytest.approx((0.8 - half, 0.8 + half))
    alone = token_accuracy(7, np.zeros((1, 6)), correct[:1], scored[:1])
    assert alone.value == 1 and alone.low is alone.high is None


def test_task_examples_do_not_depend_on_how_they_are_batched():
    seen = {}

    def score(tokens, targets, tok, key, at):
        seen.setdefault(tokens.shape[0], []).append(tokens)
        right = np.ones(at.shape, bool)
        right[:, -1] = tokens[:, 1] != 0  # wrong about the closing symbol behind a first 0
        return np.zeros(at.shape), right

    found = [
        evaluate_task(score, Copy(), (3, 5), samples=130, rows=lambda width, n=n: n)
        for n in (1, 64)
    ]
    assert found[0] == found[1] and [m.length for m in found[0]] == [3, 5]
    assert found[0][0].samples == 130 and found[0][0].tokens == 130 * 4
    assert found[0][0].value == pytest.approx(0.9, abs=0.1) and found[0][0].value < 1
    np.testing.assert_array_equal(np.concatenate(seen[1][:64]), seen[64][0])


def test_task_ids_and_keys_reach_the_model():
    calls = []

    def score(tokens, targets, tok, key, at):
        calls.append((tok, key))
        return np.zeros(at.shape), np.ones(at.shape, bool)

    evaluate_task(score, Copy(ids='coupled'), (3,), samples=4, rows=lambda width: 2)
    assert calls[0][0].pos[0].tolist() == [0, 2, 3, 4, 1, 2, 3, 4]
    assert all(key is None for _, key in calls)
    calls.clear()
    evaluate_task(score, Copy(), (3,), samples=4, rows=lambda width: 2, key=jax.random.key(0))
    assert not (jax.random.key_data(calls[0][1]) == jax.random.key_data(calls[1][1])).all()


def test_wrong_requests():
    score, given = scorer(Laplace(5)), dict(tokens=8, rows=lambda n: 1, stride=1)
    with pytest.raises(SpecError, match="did you mean 'sliding'"):
        evaluate_language(score, STREAM, (8,), ('slidin',), **given)
    with pytest.raises(ValueError, match='needs 129 tokens, but the text has 90'):
        evaluate_language(score, STREAM, (8, 128), **given)
    with pytest.raises(ValueError, match="evaluated on 'validation' or 'test'"):
        evaluate_task(score, Copy(), (3,), samples=4, rows=lambda n: 1, split='train')


@pytest.mark.parametrize(
    'sizes', [dict(data=2, tensor=2, sequence=2), dict(data=1, fsdp=8), dict(data=8)], ids=str
)
def test_a_mesh_gives_the_scores_of_one_device(sizes):
    model = tiny('rope() | alibi()', layers=1)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 13))
    arguments = tokens[:, :-1], tokens[:, 1:], Tokens.of(length=12), None, np.array([[0, 11]] * 3)
    one, many = scorer(model)(*arguments), scorer(model, make_mesh(**sizes))(*arguments)
    assert many[0].shape == (3, 2) and (np.asarray(one[1]) == many[1]).all()
    np.testing.assert_allclose(many[0], one[0], atol=1e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'fields, known, scored',
    [
        (dict(encoding='rope()'), dict(positions=np.arange(14).reshape(2, 7)), True),
        (dict(encoding='alibi_symmetric()', kind='encoder'), dict(length=7), False),
        (
            dict(
                encoding='rope()', kind='encoder_decoder', source_size=11, source_len=5,
                source_encoding='rope()',
            ),
            dict(valid=np.arange(7)[None] < 6),
            True,
        ),
        (dict(encoding='graph_attention()', kind='encoder', vocab_size=0, channels=3), None, False),
    ],
    ids=['positions', 'encoder', 'source', 'graph'],
)  # fmt: skip
def test_rows_that_a_mesh_does_not_divide_are_padded(fields, known, scored):
    model = tiny(**dict(layers=1, output_size=11) | fields)
    rng = np.random.default_rng(0)
    tokens, targets, source = *rng.integers(0, 11, (2, 2, 7)), None
    if known is None:
        tokens, edges = rng.standard_normal((2, 7, 3), np.float32), rng.random((2, 7, 7)) < 0.5
        tok = Tokens.of(length=7).with_feats(adjacency=edges[:, :, None])
    else:
        tok = Tokens.of(**known)
    if 'source_size' in fields:
        source = rng.integers(0, 11, (2, 5)), Tokens.of(length=5)
    at = np.array([[0, 5], [5, 3]]) if scored else None
    arguments = tokens, targets, tok, None, at, source
    one = scorer(model)(*arguments)
    many = scorer(model, make_mesh(tensor=2, sequence=2))(*arguments)
    assert many[0].shape == one[0].shape and (np.asarray(one[1]) == many[1]).all()
    np.testing.assert_allclose(many[0], one[0], atol=1e-5)

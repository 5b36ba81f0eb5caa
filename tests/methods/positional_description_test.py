"""Random tags, and the formats of the paper: padded products, spaces, a scratchpad."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.tasks.arithmetic import Addition, Multiplication, RandomSpaces
from posenc_jax.lab.tasks.arithmetic.digits import written
from posenc_jax.lab.tasks.arithmetic.multiplication import multiply_digits
from posenc_jax.lab.tasks.arithmetic.scratchpad import scratchpad_width
from posenc_jax.methods.positional_description import positional_description_tags
from tests.golden_files import golden
from tests.methods.models import model_of

GOLDEN = golden('positional_description')['values']
D, R = 12, 5


def make(arguments=f'width={R}', model_dim=D):
    return pj.make(f'positional_description({arguments})', model_dim=model_dim)


def tags(tok, rows=2, key=None, encoding=None):
    encoding = make() if encoding is None else encoding
    x = jnp.ones((rows, tok.length, D))
    out = np.asarray(encoding.embed(x, encoding.place(tok, key=key)))
    np.testing.assert_array_equal(out[..., : D - R], 1.0)  # the rest of the token vector
    return out[..., D - R :]


def strings(task, batch):
    for tokens, targets in zip(batch['tokens'], batch['targets']):
        yield task.decode(np.append(tokens[:1], targets)).rstrip('_')


# Tags.


@pytest.mark.full
def test_moments_of_the_tags():
    """Mean, variance and fourth moment of 64 000 numbers, within five standard errors; neighbours
    do not correlate.
    """
    at = jnp.arange(1000)[None]
    drawn = positional_description_tags(
        jnp.array([1, 2], jnp.uint32), 0 * at, 0 * at, at, GOLDEN['width']
    )
    found = np.asarray(drawn, np.float64)[0]
    error = 5 / found.size**0.5
    assert found.mean() == pytest.approx(GOLDEN['mean'], abs=error)
    assert (found**2).mean() == pytest.approx(GOLDEN['variance'], abs=error * 2**0.5)
    assert (found**4).mean() == pytest.approx(GOLDEN['fourth_moment'], abs=error * 96**0.5)
    assert (found[1:] * found[:-1]).mean() == pytest.approx(0, abs=error)
    assert GOLDEN['width'] == make('', 80).width  # the default


@pytest.mark.full
def test_training_draws_anew_for_every_step_row_and_document():
    tok = pj.Tokens.of(segment=[[0] * 4 + [1] * 4])
    first, again, other = (tags(tok, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    everything = np.concatenate([first.reshape(-1, R), other.reshape(-1, R)])
    # Two rows, two documents of four tokens, two steps.
    assert len(np.unique(everything[:, 0])) == 32


@pytest.mark.full
def test_evaluation_is_a_fixed_draw_that_rows_and_documents_share():
    tok = pj.Tokens.of(length=6)
    found = tags(tok)
    np.testing.assert_array_equal(found, tags(tok))
    np.testing.assert_array_equal(found[0], found[1])
    packed = tags(pj.Tokens.of(segment=[[0] * 3 + [1] * 3]), rows=1)
    np.testing.assert_array_equal(packed[0, 3:], packed[0, :3])
    np.testing.assert_array_equal(packed[0, :3], found[0, :3])
    assert len(np.unique(found[0])) == found[0].size


@pytest.mark.full_but_one
@pytest.mark.parametrize('key', [None, 4])
def test_tags_do_not_depend_on_padding_or_positions(key):
    key = None if key is None else jax.random.key(key)
    alone = tags(pj.Tokens.of(length=4), key=key)
    valid = np.array([[False] * 3 + [True] * 4, [True] * 4 + [False] * 3])
    padded = tags(pj.Tokens.of(valid=valid), key=key)
    np.testing.assert_array_equal(padded[0, 3:], alone[0])
    np.testing.assert_array_equal(padded[1, :4], alone[1])
    moved = tags(pj.Tokens.of(positions=7 - jnp.arange(4)[None]), key=key)
    np.testing.assert_array_equal(moved, alone)


@pytest.mark.full
def test_tokens_permuted_with_their_tags_permute_the_output():
    """A bidirectional layer sees a set: nothing but the tag tells where a token stands."""
    sizes = dict(vocab_size=7, layers=1, kind='encoder')
    model, length = model_of('positional_description(width=4)', **sizes), 8
    tokens = jnp.array([[1, 2, 2, 3, 1, 0, 2, 5]])
    order = np.random.default_rng(0).permutation(length)
    (placed,) = model.place(pj.Tokens.of(length=length))
    x = model.embed(tokens, (placed,))

    def layer(x):
        layer_type, block = model.layers()[0]
        return np.asarray(block(x, placed, model.encoding(layer_type, block)))

    out = layer(x)
    np.testing.assert_allclose(layer(x[:, order]), out[:, order], atol=1e-5)
    alone = layer(model.embed(tokens[:, order], (placed,)))  # the tokens without their tags
    assert np.abs(alone - out[:, order]).max() > 1e-2
    assert np.abs(out[0, 1] - out[0, 2]).max() > 1e-2  # equal tokens are told apart


# Products.


def test_the_padded_and_reversed_product_of_the_sheet():
    to_digits = lambda number: np.array([[int(d) for d in reversed(f'{number:04d}')]])
    a, b = to_digits(GOLDEN['a']), to_digits(GOLDEN['b'])
    count = np.array([GOLDEN['digits']])
    parts = written(a, count), written(b, count), multiply_digits(a, b)
    said = [''.join(map(str, digits[0])) for digits in parts]
    assert '{}*{}#{}'.format(*said) == GOLDEN['format']


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(reverse_output=True),
        dict(pad_product=True),
        dict(second=2),
        dict(digits=4, pad_product=True, reverse_output=True),
    ],
)
@pytest.mark.parametrize('length', [(1, 4), 3])
def test_products_are_right(options, length):
    made = Multiplication(**options)
    batch = made.sample(np.random.default_rng(0), 100, length)
    for row, said in enumerate(strings(made, batch)):
        a, b, product = re.fullmatch(r'\$(\d+)\*(\d+)=(\d+)\$', said).groups()
        number = int(product[::-1] if made.reverse_output else product)
        assert int(a) * int(b) == number
        if made.digits:
            assert len(a) == len(b) == 4 and len(product) == 8 and int(product[::-1]) == number
        elif made.pad_product:
            assert len(product) == len(a) + len(b)
        else:
            assert len(product) == len(str(number))
        if made.second:
            assert len(b) == 2
        scored = batch['targets'][row][batch['loss_mask'][row] > 0]
        assert made.decode(scored) == product + '$'


def test_numbers_that_are_too_long():
    message = 'numbers of 5 digits cannot be padded to digits=4; use at most 4'
    with pytest.raises(ValueError, match=message):
        Multiplication(digits=4).sample(np.random.default_rng(0), 2, (1, 5))


# Spaces and scratchpad.


@pytest.mark.parametrize('law', ['uniform', 'geometric'])
def test_spaces_come_off_again(law):
    inner = Addition(reverse_output=True)
    spaced = RandomSpaces(inner, law=law)
    assert spaced.most == GOLDEN['most_spaces']
    plain, batch = (t.sample(np.random.default_rng(2), 300, (1, 4)) for t in (inner, spaced))
    gaps = []
    for before, after in zip(strings(inner, plain), strings(spaced, batch)):
        assert after[0] == '$' and after.replace('.', '') == before
        gaps += [len(gap) for gap in re.findall(r'(\.*)[^.]', after)[1:]]
    share = np.bincount(gaps, minlength=4) / len(gaps)
    expected = np.full(4, 1 / 4) if law == 'uniform' else np.array([8, 4, 2, 1]) / 15
    assert len(share) == 4
    np.testing.assert_allclose(share, expected, atol=5 * (0.25 / len(gaps)) ** 0.5)
    assert not batch['loss_mask'][batch['targets'] == inner.vocab_size].any()


def test_every_step_of_the_scratchpad_follows_from_the_one_before():
    """Read with nothing but Python's integers: what remains, the carry and the sum so far."""
    made = Addition(scratchpad=True)
    batch = made.sample(np.random.default_rng(0), 100, (1, 5))
    for row, said in enumerate(strings(made, batch)):
        question, work = said.strip('$').split('=')
        a, b = question.split('+')
        *steps, answer = work.split(';')
        assert int(a) + int(b) == int(answer) and answer == str(int(answer))
        assert len(steps) == max(len(a), len(b))
        carry, so_far = 0, ''
        for step in steps:
            carry, digit = divmod(int(a[-1:] or 0) + int(b[-1:] or 0) + carry, 10)
            a, b, so_far = a[:-1], b[:-1], str(digit) + so_far
            assert step == f'{a}+{b},{carry},{so_far}'
        assert answer == (str(carry) if carry else '') + so_far
        scored = batch['targets'][row][batch['loss_mask'][row] > 0]
        assert made.decode(scored) == work + '$'
    for digits in (1, 2, 5):
        full = made.sample(np.random.default_rng(0), 1, digits)
        (said,) = strings(made, full)
        assert len(said.strip('$').split('=')[1].rpartition(';')[0]) + 1 == scratchpad_width(digits)

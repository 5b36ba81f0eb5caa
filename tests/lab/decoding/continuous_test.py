"""Continuous batching: each text gets what it gets alone, whenever it comes and goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.decoding.continuous import Server
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model.tiny import tiny_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 0, 1, 2], [3, 3], [2, 4, 6, 1]]
NEW = [4, 7, 1, 5, 3]


def alone(model, prompt, new):
    text = generate(model, jnp.asarray([prompt]), max_new_tokens=new, temperature=0.0)
    return text[0, len(prompt) :].tolist()


def model_of(spec, **fields):
    model = tiny_model(spec, layers=2, **fields)
    # Weights of the usual size make such small models repeat one token.
    return jax.tree.map(lambda a: a * 3 if a.ndim > 1 else a, model)


SPECS = ['rope()', 'alibi() | window(size=3)', 'cable()', 'fox()', 'path()', 'cheems()']
READS_IDS = 'bipe(separators=(3,)) | rope()'


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', [*SPECS, READS_IDS, 'shaw()', 'tra()', 'dca(encoding=rope())'])
def test_texts_that_come_and_go_are_those_of_a_row_alone(spec):
    model = model_of(spec)
    server = Server(model, rows=2, capacity=12)
    for prompt, new in zip(PROMPTS[:3], NEW):
        server.submit(prompt, new)
    found = {request: [] for request in range(len(PROMPTS))}
    for number, tokens in enumerate(server.steps()):
        assert len(tokens) <= 2
        if number == 2:  # two more texts come while others are decoded
            assert [server.submit(p, n) for p, n in zip(PROMPTS[3:], NEW[3:])] == [3, 4]
        for request, token in tokens.items():
            found[request].append(token)
    wanted = {i: alone(model, p, n) for i, (p, n) in enumerate(zip(PROMPTS, NEW))}
    assert found == wanted
    assert len({token for tokens in wanted.values() for token in tokens}) > 2


def test_a_text_ends_behind_its_last_token_and_a_row_is_used_again():
    model = model_of('rope()')
    whole = alone(model, PROMPTS[1], 7)
    end = whole[2]
    server = Server(model, rows=1, capacity=12, eos=end)
    server.submit(PROMPTS[1], 7), server.submit(PROMPTS[1], 7)
    wanted = whole[: whole.index(end) + 1]
    assert server.run() == {0: wanted, 1: wanted} and server.step() == {}


def test_what_is_drawn_does_not_depend_on_the_other_texts():
    model, key, of = model_of('alibi()'), jax.random.key(1), {}
    for rows in (1, 3):
        server = Server(model, rows=rows, capacity=12, temperature=2.0, key=key)
        for prompt, new in zip(PROMPTS, NEW):
            server.submit(prompt, new)
        of[rows] = server.run()
    assert of[1] == of[3] and [len(new) for new in of[1].values()] == NEW


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda m: Server(m, rows=0, capacity=4), 'rows must be at least 1, got 0'),
        (lambda m: Server(m, rows=1, capacity=4, temperature=1.0), 'needs a key'),
        (lambda m: Server(m, rows=1, capacity=4, top_k=2), 'have no meaning'),
        (lambda m: Server(m, rows=1, capacity=4, eos=9), r'eos must lie in 0 .. 6, got 9'),
        (lambda m: Server(m, rows=1, capacity=4).submit([1, 2], 4), 'need 5 slots, a row has 4'),
        (lambda m: Server(m, rows=1, capacity=4).submit([], 1), 'at least one token id'),
        (lambda m: Server(m, rows=1, capacity=4).submit(np.ones(2), 1), 'got float64'),
        (lambda m: Server(m, rows=1, capacity=4).submit([1], 0), 'max_new_tokens must be'),
    ],
)
def test_wrong_input_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make(model_of('rope()'))


def test_a_rule_that_changes_below_the_capacity_is_refused():
    rule = 'rope(freqs=longrope(long=(2.0, 2.0), short=(1.0, 1.0), factor=2.0, train_len=4))'
    model = model_of(rule)
    with pytest.raises(ValueError, match='the text has to be read again'):
        Server(model, rows=1, capacity=12)
    Server(model, rows=1, capacity=4)

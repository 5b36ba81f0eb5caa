"""The attention on the first byte: even attention by hand, and what its claim reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import first_byte
from posenc_jax.lab.model.tiny import tiny_model
from tests.evidence.written import evaluation, table

LENGTH, FIRST = 8, 4


@pytest.mark.parametrize('spec, sinks', [('rope()', 0), ('attention_sink() | rope()', 1)])
def test_even_attention_gives_every_byte_and_the_sink_the_same(spec, sinks, monkeypatch):
    monkeypatch.setattr(first_byte, 'FIRST_QUERY', FIRST)
    model = tiny_model(spec, vocab_size=9, layers=2)
    for block in model.blocks:
        block.attention.w_q.set_value(jnp.zeros_like(block.attention.w_q[...]))
    tokens = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, 9)
    seen = np.arange(FIRST, LENGTH) + 1
    by_hand = {'weight': 1 / (seen + sinks), 'share': 1 / seen, 'bytes': seen / (seen + sinks)}
    expected = {name: pytest.approx(values.mean()) for name, values in by_hand.items()}
    assert first_byte.on_first(model, tokens) == expected


def found(tmp_path, sink, share, loss):
    """The effect if the first byte has the weight `sink` and the share `share`, and .4 without
    sinks.
    """
    rows = [(panel, 'rope', 128, 0, 0.4) for panel in ('weight', 'share')]
    rows += [('weight', 'sink', 128, 0, sink), ('share', 'sink', 128, 0, share)]
    table(tmp_path / 'first_byte', rows)
    losses = {'rope': 1.5, 'sink': 1.5 + loss}
    evaluation(tmp_path / 'comparison', losses, (128,), lambda name, _: losses[name], (0,))
    results = tmp_path / 'comparison' / 'results.json'
    text = results.read_text().replace('"nll"', '"protocol": "same_tokens", "nll"')
    results.write_text(text)
    return CLAIMS['FE9'].how.effects(ResultRows(tmp_path))[0]


def test_the_claim_asks_for_less_of_the_first_byte_and_not_of_all_bytes(tmp_path):
    assert found(tmp_path / 'a', 0.04, 0.05, -0.01) == pytest.approx(1.0)
    assert found(tmp_path / 'b', 0.04, 0.4, 0.01) == pytest.approx(0.4)  # from all bytes alike
    assert found(tmp_path / 'c', 0.4, 0.4, 0.0) == pytest.approx(0.0)
    assert found(tmp_path / 'd', 0.04, 0.05, 0.03) == -0.7

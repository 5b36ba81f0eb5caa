"""Streams of `frontier_text streams`: the loss of each byte in a cache that drops none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from evidence.experiments import sinks
from posenc_jax.lab.decoding.streaming import StreamingCache
from posenc_jax.lab.model.tiny import tiny_model


def test_a_stream_that_fits_has_the_losses_of_one_pass(monkeypatch):
    monkeypatch.setattr(sinks, 'SIZE', 4)
    text = jax.random.randint(jax.random.key(0), (2, 12), 0, 9)
    model = tiny_model('streaming(encoding=rope())', vocab_size=9)
    found = sinks.nats(model, text, StreamingCache(0, 12))
    lost = optax.softmax_cross_entropy_with_integer_labels(model(text)[:, 3:-1], text[:, 4:])
    np.testing.assert_allclose(found, lost, atol=1e-5)
    dropped = sinks.nats(model, text, StreamingCache(0, 3))
    assert float(jnp.abs(dropped - lost).max()) > 1e-3

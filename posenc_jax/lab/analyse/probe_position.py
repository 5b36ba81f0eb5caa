"""Position probes: how well a small network tells the position of a token from its vector."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import by_layer, small_legend
from posenc_jax.lab.analyse.states import layer_states
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.registry import register

HIDDEN, RATE, ROWS = 128, 3e-3, 512  # of the network: units, step size, tokens of a step


class Probed(NamedTuple):
    """Attributes:
    mae: mean of |predicted - true position|, in tokens, behind every layer; entry 0 is the input.
    r2: share of the variance of the position that the prediction explains; below 0 where the
      mean position would do better.
    accuracy: share of tokens whose nearest position is predicted.
    length: T.
    """

    mae: Float[np.ndarray, ' L']
    r2: Float[np.ndarray, ' L']
    accuracy: Float[np.ndarray, ' L']
    length: int


def guesses(length: int) -> tuple[float, float]:
    """The mean distance of two guesses that know nothing: the median position, T/4 (for an even T),
    and a uniform draw, (T^2 - 1) / (3 T).
    """
    return float(np.abs(np.arange(length) - (length - 1) / 2).mean()), (length**2 - 1) / (
        3 * length
    )


def ridge_probe(
    train: Float[np.ndarray, 'S T D'], test: Float[np.ndarray, 'R T D'], *, penalty: float = 1.0
) -> Float[np.ndarray, 'R T']:
    """Positions of the test tokens by ridge regression on [z, z^2], where z is a feature less its
    mean over its standard deviation, both of the training tokens. In float64.

    `w = (F^T F + penalty I)^-1 F^T (t - mean t)` for centred features F.
    """
    mean, std = train.mean((0, 1), dtype=np.float64), train.std((0, 1), dtype=np.float64)
    scale = 1 / np.where(std > 1e-9 * (1 + np.abs(mean)), std, np.inf)  # a constant feature says 0

    def features(x):
        z = (x - mean) * scale
        return np.concatenate([z, z * z], axis=-1).reshape(-1, 2 * x.shape[-1])

    length, f = train.shape[1], features(train)
    t, centre = np.tile(np.arange(length), len(train)), f.mean(0)
    f -= centre
    w = np.linalg.solve(f.T @ f + penalty * np.eye(f.shape[1]), f.T @ (t - t.mean()))
    return ((features(test) - centre) @ w + t.mean()).reshape(test.shape[:2])


def mlp_probe(
    train: Float[np.ndarray, 'S T D'],
    test: Float[np.ndarray, 'R T D'],
    *,
    steps: int = 400,
    seed: int = 0,
) -> Float[np.ndarray, 'R T']:
    """Positions of the test tokens by a network of two layers with a relu between, T classes and
    cross-entropy, trained with Adam on standardised features.
    """
    mean, std = train.mean((0, 1)), train.std((0, 1))
    scaled = lambda x: jnp.asarray((x - mean) / np.maximum(std, 1e-6), jnp.float32)
    return np.asarray(_trained(scaled(train), scaled(test), steps, seed), float)


@functools.partial(jax.jit, static_argnums=2)
def _trained(train, test, steps, seed):
    sequences, length, width = train.shape
    rows, t = train.reshape(-1, width), jnp.tile(jnp.arange(length), sequences)
    keys = jax.random.split(jax.random.key(seed), 3)
    draw = lambda key, i, o: jax.random.normal(key, (i, o)) * (2 / i) ** 0.5
    w = (
        draw(keys[0], width, HIDDEN),
        jnp.zeros(HIDDEN),
        draw(keys[1], HIDDEN, length),
        jnp.zeros(length),
    )
    logits = lambda w, x: jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]
    adam = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(w, at):
        return optax.softmax_cross_entropy_with_integer_labels(logits(w, rows[at]), t[at]).mean()

    def step(carry, key):
        w, state = carry
        grads = jax.grad(loss)(w, jax.random.randint(key, (ROWS,), 0, len(rows)))
        updates, state = adam.update(grads, state)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (w, adam.init(w)), jax.random.split(keys[2], steps))
    return logits(w, test).argmax(-1)


def probe_scores(predicted: Float[np.ndarray, 'R T']) -> tuple[float, float, float]:
    """MAE, R^2 and accuracy of predicted positions; the true ones are 0 .. T-1."""
    t = np.arange(predicted.shape[1])
    error = predicted - t
    nearest = np.clip(np.rint(predicted), 0, len(t) - 1)
    return (
        float(np.abs(error).mean()),
        1 - float((error**2).mean() / t.var()),
        float((nearest == t).mean()),
    )


@register(
    'probe_position',
    kind='analysis',
    card=analysis_card(
        'position probes',
        'probe_position(model, tokens)',
        ('You want to know in which layers of a model the position of a token can be read.'),
    ),
)
def probe_position(
    model: Transformer,
    tokens: Int[np.ndarray, 'S T'],
    *,
    probe: Literal['ridge', 'mlp'] = 'ridge',
    penalty: Positive = 1.0,
    batch: int = 8,
) -> Probed:
    """How well the position of a token is read from its vector, behind every layer of a frozen
    model.

    `mae_l = mean over held-out sequences of |probe_l(h_lt) - t|`: each layer has a probe of its
    own, which sees one token at a time. It is trained on three
    quarters of the sequences and measured on the others. Differs from the paper: besides its
    network of two layers there is a ridge regression, which is much cheaper; the sizes of the
    network are ours.

    Args:
      model: a decoder or encoder with any encodings.
      tokens: ids of at least four sequences.
      probe: 'ridge' (see `ridge_probe`) or 'mlp' (see `mlp_probe`).
      penalty: of the ridge, positive.
      batch: sequences that are read at a time.

    Raises:
      SpecError: an unknown probe.
      ValueError: fewer than four sequences or two tokens; a penalty that is not positive; see
        `layer_states`.

    Reference: Haviv, Ram, Press, Izsak, Levy, arXiv 2203.16634.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> tokens = np.random.default_rng(0).integers(7, size=(16, 8))
      >>> probe_position(tiny_model('nope()'), tokens).mae.shape
      (2,)
    """
    if len(tokens) < 4 or tokens.shape[1] < 2:
        raise ValueError(
            'probe_position needs at least four sequences of two tokens, got '
            f'{len(tokens)} of {tokens.shape[1]}'
        )
    (hidden,) = layer_states(model, tokens, batch=batch)
    held = max(1, len(tokens) // 4)
    of = functools.partial(ridge_probe, penalty=penalty) if probe == 'ridge' else mlp_probe
    scores = [probe_scores(of(h[held:], h[:held])) for h in hidden]
    return Probed(*map(np.array, zip(*scores)), tokens.shape[1])


def _draw(figure, found):
    axis = figure.subplots()
    label = 'mean |predicted - true position|, tokens'
    by_layer(axis, {name: one.mae for name, one in found.items()}, first=0, label=label)
    for guess, style, what in zip(
        guesses(max(one.length for one in found.values())), ('--', ':'), ('median', 'random')
    ):
        label = f'{what} position'
        axis.axhline(guess, color='0.4', linestyle=style, linewidth=1, label=label)
    axis.set_ylim(0, None)
    small_legend(axis)


ANALYSIS = Comparison(
    measure=probe_position,
    batches=64,
    longest=256,
    options={'probe': dict(default='ridge', help="'ridge' or 'mlp'")},
    columns=('layer', 'MAE', 'R2', 'accuracy'),
    rows=lambda one: zip(range(len(one.mae)), one.mae, one.r2, one.accuracy),
    draw=_draw,
    title='Error of a position read from the vector of a token',
    remarks=lambda found: [
        f'{length} positions: the median position is {guesses(length)[0]:.2f} off, a random '
        f'one {guesses(length)[1]:.2f}'
        for length in sorted({one.length for one in found.values()})
    ],
)

"""How DuoAttention finds its retrieval heads: a gate per key head, trained alone on synthetic
passkeys.
"""

import contextlib
import numbers
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.core.composite import name_of
from posenc_jax.core.tokens import Tokens
from posenc_jax.decoding.duo_attention import DuoAttention, with_mask
from posenc_jax.model.layers import layer_rows
from posenc_jax.model.sharding import sharded_attend
from posenc_jax.model.transformer import Transformer
from posenc_jax.training.metrics import Progress
from posenc_jax.training.step import tokens_of


def gate_loss(
    full: Float[Array, 'B T D'],
    mixed: Float[Array, 'B T D'],
    loss_mask: Float[Array, 'B T'],
    gates: Float[Array, 'layers K'],
    weight: float = 0.05,
) -> Float[Array, '']:
    """`mean over supervised tokens of mean_d (full - mixed)^2 + weight mean |alpha|`, float32; no
    gradient reaches `full`.

    Raises:
      ValueError: hidden states of different shapes, or a mask that is not theirs.

    Example:
      >>> float(
      ...     gate_loss(
      ...         jnp.zeros((1, 2, 4)),
      ...         jnp.full((1, 2, 4), 2.0),
      ...         jnp.array([[0.0, 1.0]]),
      ...         jnp.full((3, 2), 0.5),
      ...     )
      ... )
      4.025
    """
    if full.shape != mixed.shape or loss_mask.shape != full.shape[:2]:
        found = f'{full.shape}, {mixed.shape}, {loss_mask.shape}'
        raise ValueError(
            f'gate_loss compares hidden states [B, T, D] under a mask [B, T], got {found}'
        )
    distance = jnp.square(
        jax.lax.stop_gradient(full).astype(jnp.float32) - mixed.astype(jnp.float32)
    ).mean(-1)
    return (distance * loss_mask).sum() / jnp.maximum(loss_mask.sum(), 1.0) + weight * jnp.abs(
        gates
    ).mean()


def mixed_hidden(
    model: Transformer,
    gates: Float[Array, 'layers K'],
    tokens: Int[Array, 'B T'],
    tok: Tokens | None = None,
    *,
    sink: int,
    recent: int,
) -> Float[Array, 'B T D']:
    """The last hidden states with `alpha * full + (1 - alpha) * streaming` for the result of every
    head.

    Streaming attention sees key j iff `j <= i` and (`j < sink` or `i - j < recent`). Query heads
    that share keys share a gate.

    Args:
      gates: alpha, in 0 .. 1; what is traced is not checked.
      sink, recent: of the streaming mask; sink at least 0, recent at least 1.

    Raises:
      ValueError: gates of another shape or outside 0 .. 1; sink or recent out of range; an encoding
        without a causal mask, or with several inputs of attention.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> model, text = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(8)[None] % 7
      >>> bool(
      ...     jnp.allclose(
      ...         mixed_hidden(model, jnp.ones((1, 2)), text, sink=1, recent=2),
      ...         model.hidden(text),
      ...         atol=1e-6,
      ...     )
      ... )
      True
    """
    cfg = model.cfg
    if gates.shape != (cfg.layers, cfg.kv_heads):
        wanted = f'{cfg.layers} layers and {cfg.kv_heads} key heads'
        raise ValueError(f'duo_attention: expected a gate for each of {wanted}, got {gates.shape}')
    if not isinstance(gates, jax.core.Tracer) and not ((gates >= 0) & (gates <= 1)).all():
        raise ValueError(
            f'duo_attention: gates lie in 0 .. 1, got {float(gates.min()):g} .. '
            f'{float(gates.max()):g}'
        )
    if sink < 0 or recent < 1:
        raise ValueError(
            f'duo_attention: gates are trained with sink >= 0 and recent >= 1, got {sink=}, '
            f'{recent=}'
        )
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)
    mask = DuoAttention(
        sink, recent - 1, (), cfg.heads, cfg.kv_heads
    )  # recent keys, the query's own among them

    def layer(x, number, place, block):
        encoding, here = model.encoding(place, block), placed[place]
        if encoding.opens('qkv'):
            raise ValueError(
                f'duo_attention gates heads of one input of attention, {name_of(encoding)} makes '
                'several'
            )
        streaming, gate = (
            with_mask(encoding, mask),
            jnp.repeat(gates[number], cfg.heads // cfg.kv_heads)[:, None],
        )

        def mix(h):
            rows = layer_rows(h, here.valid, encoding.lookback)
            projected = encoding.project(*block.attention.split(h), here, here, rows)
            attend = lambda part: sharded_attend(
                part, *projected, block=block.block, implementation=block.implementation
            )
            return (gate * attend(encoding) + (1 - gate) * attend(streaming)).astype(h.dtype)

        return block.around(x, mix), None

    return model.norm(model.scan_layers(layer, model.embed(tokens, placed))[0])


def train_gates(
    model: Transformer,
    batches: Iterable[Mapping[str, Array]],
    *,
    steps: int = 2000,
    sink: int = 128,
    recent: int = 256,
    weight: float = 0.05,
    learning_rate: float = 0.02,
    progress: bool = True,
) -> tuple[Float[Array, 'layers K'], Float[Array, 'steps']]:
    """Trains the gates of a frozen model on `gate_loss`; they start at 1 and are clamped to 0 .. 1
    before every step.

    The paper trains on ten keys of 32 words in texts of up to its context; for a public model the
    passkeys of this library are of one key of digits (`passkey_text`), those of `passkeys` are
    tokens of their own for models trained on them.

    Adam, its rate rising over the first and falling to 0 over the last fifth of the steps.

    Args:
      model: a decoder; nothing of it changes.
      batches: of `passkeys`, e.g. `batch_iterator(Passkeys().dataset(length=(1024, 2048),
        batch_size=1, seed=0))`; as many as there are steps.
      sink, recent: of the streaming mask in training.
      weight: of the mean gate in the loss, at least 0.
      learning_rate: the highest, positive.
      progress: report the loss, twenty times.

    Returns:
      The gates for `retrieval_heads`, and the loss before each update.

    Raises:
      ValueError: steps below 1, or fewer batches than steps; a negative weight, a rate that is not
        positive; token ids that the model does not have; as `mixed_hidden`.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> from posenc_jax.tasks import batch_iterator
      >>> from posenc_jax.tasks.retrieval import Passkeys
      >>> task = Passkeys(keys=1, words=2, alphabet=4, fillers=2)
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=16, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> batches = batch_iterator(task.dataset(length=16, batch_size=2, seed=0))
      >>> gates, losses = train_gates(
      ...     Transformer(cfg, rngs=nnx.Rngs(0)), batches, steps=3, sink=1, recent=4, progress=False
      ... )
      >>> gates.shape, bool((gates < 1).all()), losses.shape
      ((1, 2), True, (3,))
    """
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f'duo_attention: steps must be at least 1, an integer, got {steps}')
    if not weight >= 0 or not learning_rate > 0:
        raise ValueError(
            f'duo_attention: expected weight >= 0 and learning_rate > 0, got {weight=}, '
            f'{learning_rate=}'
        )
    fifth = steps / 5
    shape = lambda count: jnp.minimum(
        jnp.minimum((count + 1) / fifth, 1.0), (steps - count) / fifth
    )
    optimizer = optax.adamw(lambda count: learning_rate * shape(count), weight_decay=0.0)
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(gates, opt_state, state, batch):
        model, tok = nnx.merge(graphdef, state), tokens_of(batch)
        gates, full = jnp.clip(gates, 0.0, 1.0), model.hidden(batch['tokens'], tok)

        def loss_of(gates):
            mixed = mixed_hidden(model, gates, batch['tokens'], tok, sink=sink, recent=recent)
            return gate_loss(full, mixed, batch['loss_mask'], gates, weight)

        loss, gradient = jax.value_and_grad(loss_of)(gates)
        updates, opt_state = optimizer.update(gradient, opt_state, gates)
        return optax.apply_updates(gates, updates), opt_state, loss

    gates = jnp.ones((model.cfg.layers, model.cfg.kv_heads), jnp.float32)
    opt_state, losses, batches = optimizer.init(gates), [], iter(batches)
    with contextlib.ExitStack() as stack:
        line = None
        for number in range(steps):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f'duo_attention: {steps} steps need as many batches, got {number}')
            model.check_ids(np.asarray(batch['tokens']), batch.get('valid'))
            gates, opt_state, loss = step(
                gates, opt_state, state, {name: jnp.asarray(a) for name, a in batch.items()}
            )
            losses.append(loss)
            if progress and (number + 1) % max(steps // 20, 1) == 0:
                line = line or stack.enter_context(Progress(0, steps, batch['tokens'].size))
                line.report(number + 1, float(loss))
    return jnp.clip(gates, 0.0, 1.0), jnp.stack(losses)

"""Training of the gates with which DuoAttention finds its retrieval heads: one gate per key head,
trained on synthetic passkeys while the model is frozen.
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

from posenc_jax.lab.decoding.duo_attention import DuoAttention, with_mask
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.train.metrics import Progress
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.tokens import Tokens


def gate_loss(
    full: Float[Array, 'B T D'],
    mixed: Float[Array, 'B T D'],
    loss_mask: Float[Array, 'B T'],
    gates: Float[Array, 'layers K'],
    weight: float = 0.05,
) -> Float[Array, '']:
    """`mean over supervised tokens of mean_d (full - mixed)^2 + weight mean |alpha|`, in float32.

    Args:
      full: last hidden states with full attention; no gradient reaches them.
      mixed: last hidden states with gated attention, see `mixed_hidden`.
      loss_mask: 1 at supervised tokens, 0 elsewhere.
      gates: alpha.
      weight: of the mean gate.

    Raises:
      ValueError: the hidden states have different shapes, or the mask does not fit them.
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
    """The last hidden states where the result of every head is
    `alpha * full + (1 - alpha) * streaming`.

    Streaming attention sees key j iff `j <= i` and (`j < sink` or `i - j < recent`). Query heads
    that share keys share a gate.

    Args:
      model: a decoder.
      gates: alpha, in 0 .. 1; traced values are not checked.
      tokens: token ids.
      tok: positions, documents and padding; None for plain positions.
      sink: how many first keys streaming heads see, at least 0.
      recent: how many latest keys streaming heads see, that of the query included; at least 1.

    Raises:
      ValueError: the gates have another shape or lie outside 0 .. 1; `sink` or `recent` is out of
        range; the encoding has no causal mask, or gives attention several inputs.
    """
    cfg = model.cfg
    if gates.shape != (cfg.layers, cfg.kv_heads):
        wanted = f'{cfg.layers} layers and {cfg.kv_heads} key heads'
        raise ValueError(f'duo_attention: expected a gate for each of {wanted}, got {gates.shape}')
    if not isinstance(gates, jax.core.Tracer) and not ((gates >= 0) & (gates <= 1)).all():
        raise ValueError(
            f'duo_attention: gates must lie in 0 .. 1, got {float(gates.min()):g} .. '
            f'{float(gates.max()):g}'
        )
    if sink < 0 or recent < 1:
        raise ValueError(
            f'duo_attention: training of gates needs sink >= 0 and recent >= 1, got {sink=}, '
            f'{recent=}'
        )
    placed = model.place(Tokens.of(length=tokens.shape[1]) if tok is None else tok, tokens)
    # `DuoAttention` counts the recent keys without that of the query.
    mask = DuoAttention(sink, recent - 1, (), cfg.heads, cfg.kv_heads)

    def layer(x, number, layer_type, block):
        mixer, here = model.attention(layer_type, block), placed[layer_type]
        encoding = mixer.encoding
        if encoding.opens('qkv'):
            raise ValueError(
                f'duo_attention: a gate belongs to a head of one attention input, but '
                f'{name_of(encoding)} makes several inputs'
            )
        streaming, gate = (
            with_mask(encoding, mask),
            jnp.repeat(gates[number], cfg.heads // cfg.kv_heads)[:, None],
        )

        def mix(h):
            projected = mixer.projected(h, here)
            attend = lambda part: mixer.attend(*projected, encoding=part)
            both = gate * attend(encoding) + (1 - gate) * attend(streaming)
            return mixer.output(both.astype(h.dtype))

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
    """Trains the gates of a frozen model on `gate_loss`. They start at 1 and are clamped to 0 .. 1
    before every step.

    The optimizer is Adam. Its rate rises linearly over the first fifth of the steps and falls
    towards 0 over the last fifth. The paper trains on ten keys of 32 words in texts up to the
    context length of the model. For a public model, `passkey_text` has one key of digits; the task
    `passkeys` has token ids of its own, for models that were trained on it.

    Args:
      model: a decoder; it is not changed.
      batches: batches of `passkeys`, e.g. `batch_iterator(Passkeys().dataset(length=(1024, 2048),
        batch_size=1, seed=0))`; at least `steps` of them.
      steps: how many updates.
      sink, recent: the streaming mask in training, see `mixed_hidden`.
      weight: of the mean gate in the loss, at least 0.
      learning_rate: the peak, positive.
      progress: whether the loss is reported, twenty times.

    Returns:
      The gates for `retrieval_heads`, and the loss before each update.

    Raises:
      ValueError: `steps` is below 1, or there are fewer batches; `weight` is negative, or
        `learning_rate` not positive; the model does not have a token id; as `mixed_hidden`.

    Example:
      >>> from posenc_jax.lab.model import TransformerConfig
      >>> from posenc_jax.lab.tasks import batch_iterator
      >>> from posenc_jax.lab.tasks.retrieval import Passkeys
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

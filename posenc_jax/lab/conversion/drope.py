"""DroPE: removes the rotary positions of a trained model, and trains it on at its length."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.lab.conversion.fit import decayed, fit
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.protocol.composite import Composite, name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.registry import Card, Promises, register

RATE, WARMUP, WEIGHT_DECAY = 1e-3, 0.035, 0.1  # of the runs from scratch in the paper
Nodes = tuple[spec_language.Node, ...]


class Losses(NamedTuple):
    """Nats a token of one text, at three times; and of every batch in training, before its update.

    Attributes:
      rotary: of the model with its rotary positions.
      dropped: directly after they have been removed.
      recalibrated: after training.
      batches: [steps].
    """

    rotary: float
    dropped: float
    recalibrated: float
    batches: Float[Array, 'steps']


def drope_schedule(steps: int, rate: float = RATE) -> optax.Schedule:
    """A learning rate that begins anew: linear warm-up of 3.5 % of the steps, one at least, then a
    cosine to 0.

    Raises:
      ValueError: no steps, or a rate that is not positive.

    Example:
      >>> [round(float(drope_schedule(200)(step)), 5) for step in (0, 6, 7, 200)]
      [0.00014, 0.001, 0.001, 0.0]
    """
    if steps < 1:
        raise ValueError(f'drope trains for at least 1 step, got {steps}')
    check_number('drope: the learning rate', rate, above=0)
    warmup = min(max(round(WARMUP * steps), 1), steps)
    rising = lambda step: rate * (step + 1) / warmup  # every step trains, the first one too
    return optax.join_schedules(
        [rising, optax.cosine_decay_schedule(rate, max(steps - warmup, 1))], [warmup]
    )


def inference_spec(slope: float) -> str:
    """The extension of a converted model for texts longer than trained, as a spec string.

    `beta_i = 1 + c ln(max(i + 1, L) / L)`, a factor of the logits of query i, is that of the paper
    at the length i + 1. So a decoding step is that of a pass over the whole text, whose earlier
    rows keep their factors.

    Args:
      slope: c, at least 0, fitted by the perplexity at the new length: 0.412 for the paper's models
        from scratch, 0.103 for SmolLM.

    Raises:
      ValueError: a negative slope.

    Example:
      >>> inference_spec(0.412)
      'nope_temperature(slope=0.412)'
    """
    return f'nope_temperature(slope={check_number("drope: slope", slope, least=0)!r})'


def drop(model: Transformer) -> Transformer:
    """The same model with `nope()` in the place of every part that rotates queries and keys.

    All weights and all other parts are kept, such as windows and biases. It computes another
    function than the model, and is of little use before it is trained on.

    Raises:
      ValueError: a model without such a part, one whose encoding is not that of its config, one of
        whose parts rotates and also masks keys or holds other encodings (`lm_infinite`,
        `per_head`), or one that reads a source.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> drop(tiny_model('rope() | window(size=4)')).cfg.encoding
      'nope() | window(size=4)'
    """
    if model.cfg.kind == 'encoder_decoder':
        raise ValueError('drope takes a decoder or an encoder, got a model that reads a source')
    blocks = list(enumerate(model.blocks))
    parts = [
        () if block.own_mixer is not None else parts_of(model.encoding(number, block))
        for number, block in blocks
    ]
    if not any(map(_rotates, sum(parts, ()))):
        found = ', '.join(' | '.join(map(name_of, own)) or 'a mixer' for own in parts)
        raise ValueError(f'drope removes rotary positions, but the model has {found}')
    chains = [parse_layer(one).nodes for one in model.cfg.specs]
    specs = tuple(str(spec_language.Chain(_without(*own))) for own in zip(chains, parts))
    changed = {'pattern': specs} if model.cfg.pattern else {'encoding': specs[0]}
    dropped = Transformer(dataclasses.replace(model.cfg, **changed), rngs=nnx.Rngs(0))
    for number, own in enumerate(dropped.blocks):
        if own.own_mixer is not None:
            continue
        pairs = zip(parts_of(dropped.encoding(number, own)), parts[number], strict=True)
        for ours, theirs in pairs:
            if not _rotates(theirs):
                nnx.update(ours, nnx.state(theirs))
    of_layers = lambda path, _: path[0] != 'shared' and 'encodings' not in path
    nnx.update(dropped, nnx.state(model, of_layers))
    return dropped


def _rotates(part: Encoding) -> bool:
    return 'rotates' in part.traits


def _without(nodes: Nodes, parts: tuple[Encoding, ...]) -> Nodes:
    """The calls of a layer with `nope()` for those that rotate. The first parts of a layer are its
    calls; masks follow.
    """
    if not parts:
        return nodes
    if [node.entry.key for node in nodes] != [name_of(part) for part in parts[: len(nodes)]]:
        found, expected = ' | '.join(map(name_of, parts)), spec_language.Chain(nodes)
        raise ValueError(
            f'drope: the encoding of the model ({found}) is not that of its config ({expected}); '
            'drop the positions first, then extend'
        )
    (nope,) = spec_language.parse('nope()').nodes
    kept = []
    for node, part in zip(nodes, parts):
        several = isinstance(part, Composite) and len(part.children) > 1
        if _rotates(part) and (several or part.opens('mask')):
            what = 'holds other encodings' if several else 'masks keys'
            raise ValueError(
                f'drope: {node.entry.key} rotates and {what} too, which would be lost; write the '
                'mask or the encoding as a part of its own'
            )
        kept.append(nope if _rotates(part) else node)
    return tuple(kept)


@register(
    'drope',
    kind='conversion',
    card=Card(
        name='DroPE',
        door='project',
        example='drope.recalibrate(model, batches, held)',
        use_when=(
            'You have a rotary model and can tune it at its own length; to compare with YaRN, '
            'since the measured claims are contrary.'
        ),
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def recalibrate(
    model: Transformer,
    batches: Int[Array, 'steps B length'],
    held: Int[Array, 'rows length'],
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Transformer, Losses]:
    """Removes the rotary positions of a model (`drop`) and trains all its weights on at the length
    at which it was trained.

    `logit_ij = beta_i q_i . k_j / sqrt(H)`, in which `beta_i = 1` up to the trained length L.
    Beyond L, `model.extend(inference_spec(c))` gives beta_i its slope c. The optimizer and its
    schedule begin anew with a rate that is not small: with the end of a schedule that has decayed,
    the model would stay as dropping leaves it. Differs from the paper: beta belongs to each query
    instead of the length of the text. The norm of queries and keys that the paper adds to some
    models after dropping is left out. Recipes: 2 to 12.5 % of the tokens of the training before, at
    a rate of 1e-3 (models from scratch, SmolLM), or 0.5 % at 1e-4 (Llama 2 7B).

    Args:
      model: a decoder with a rotary encoding; it stays as it is.
      batches: token ids of the texts of every step, of which each token predicts the next.
      held: token ids on which the losses are measured, not used in training.
      optimizer: None for AdamW with decay rates 0.9 and 0.95, weight decay 0.1 of the matrices
        outside encodings, and the rates of `drope_schedule`.

    Returns:
      The model without positions, and its losses.

    Raises:
      ValueError: as for `drop`; a model that does not predict the next token; texts longer than
        trained or of one token; ids that the model does not have.

    Reference: Gelberg, Eguchi, Akiba, Cetin, arXiv 2512.12167.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> texts = jnp.tile(jnp.arange(9) % 7, (4, 2, 1))
      >>> dropped, losses = recalibrate(tiny_model('rope()'), texts, texts[0])
      >>> dropped.cfg.encoding, losses.batches.shape, losses.recalibrated < losses.dropped
      ('nope()', (4,), True)
    """
    batches, held = jnp.asarray(batches), jnp.asarray(held)
    if model.cfg.kind != 'decoder':
        raise ValueError(
            f'drope trains a model that predicts the next token, got kind {model.cfg.kind!r}'
        )
    if batches.ndim != 3 or held.ndim != 2 or 0 in batches.shape or 0 in held.shape:
        raise ValueError(
            'drope takes batches [steps, B, length] and held [rows, length], got '
            f'{batches.shape} and {held.shape}'
        )
    for texts in (batches, held):
        if not 2 <= texts.shape[-1] <= model.cfg.train_len + 1:
            raise ValueError(
                'drope recalibrates at the trained length: texts have 2 .. '
                f'{model.cfg.train_len + 1} tokens, of which the last is only predicted, got '
                f'{texts.shape[-1]}'
            )
        model.check_ids(texts, None)
    dropped = drop(model)
    if optimizer is None:
        rate, mask = drope_schedule(len(batches)), decayed(dropped)
        optimizer = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=WEIGHT_DECAY, mask=mask)
    student, losses, _ = fit(dropped, dropped, _next_token, batches, optimizer)
    measure = jax.jit(lambda model, text: _next_token(model, None, text)[0])
    before, directly, after = (float(measure(own, held)) for own in (model, dropped, student))
    return student, Losses(before, directly, after, losses)


def _next_token(model, _, text):
    logits = model(text[:, :-1]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean(), None

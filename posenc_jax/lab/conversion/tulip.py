"""TULIP: replaces the absolute positions of a text encoder by relative ones, and distils the
original encoder into the result.
"""

import dataclasses
import inspect
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.conversion.fit import decayed, fit
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.protocol.checks import check_factor, check_train_len
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

Kind = Literal['cosine', 'mse', 'l2']
KINDS = ('cosine', 'mse', 'l2')
RATE, WEIGHT_DECAY = 5e-4, 0.1  # of the first stage in the paper


def distillation_loss(
    teacher: Float[Array, 'B D'], student: Float[Array, 'B D'], kind: Kind = 'cosine'
) -> Float[Array, '']:
    """`1 - mean cos(teacher, student)` over the rows, in float32; no gradient reaches the teacher.

    Vectors shorter than 1e-8 are divided by 1e-8 instead of their length, so that a zero vector has
    the cosine 0 and a finite gradient.

    Args:
      teacher, student: pooled outputs, one row per text.
      kind: 'cosine'; or the other options of the paper: 'mse', the mean squared difference, and
        'l2', the mean Euclidean distance of the rows.

    Raises:
      ValueError: shapes that differ or are not [B, D]; an unknown kind.
    """
    if teacher.ndim != 2 or teacher.shape != student.shape:
        raise ValueError(
            f'distillation_loss compares pooled outputs [B, D], got {teacher.shape} and '
            f'{student.shape}'
        )
    teacher, student = (
        jax.lax.stop_gradient(teacher).astype(jnp.float32),
        student.astype(jnp.float32),
    )
    if check_choice('distillation_loss kind', kind, KINDS) == 'cosine':
        return 1.0 - (_directions(teacher) * _directions(student)).sum(-1).mean()
    apart = teacher - student
    return (apart**2).mean() if kind == 'mse' else optax.safe_norm(apart, 0.0, axis=-1).mean()


def _directions(x):
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-16))


def expansion_factor(length: int, train_len: int = 77, factor: float = 2.0) -> float:
    """The factor `s = f l / L - (f - 1)` of stage 2, which is dynamic NTK for a fixed length.

    It expands the rotary base b to `b s^(D/(D-2))`.

    Args:
      length: l, the new length in tokens.
      train_len: L, the length of stage 1 in tokens.
      factor: f, the factor of dynamic NTK.

    Raises:
      ValueError: a factor below 1, lengths that are not positive integers, a length below
        train_len.
    """
    check_factor('tulip', factor)
    if check_train_len('tulip', length) < check_train_len('tulip', train_len):
        raise ValueError(f'tulip expands to at least train_len={train_len} tokens, got {length}')
    return 1.0 + factor * (length - train_len) / train_len


def expansion_spec(length: int, train_len: int = 77, factor: float = 2.0) -> str:
    """Stage 2 as a spec string, for `student.extend(...)` or as the rule of a rotary encoding.

    Arguments and errors as for `expansion_factor`.
    """
    return f'ntk_aware(factor={expansion_factor(length, train_len, factor)!r})'


def pooled(
    model: Transformer, tokens: Int[Array, 'B L'], valid: Bool[Array, '#B L'] | None = None
) -> Float[Array, 'B D']:
    """The text embedding as in CLIP: the last layer's output, after the final norm, at the last
    real token of each row.

    Args:
      model: a decoder, in which the last token of a text sees the whole text.
      tokens: token ids, one text per row.
      valid: False for padding, on either side; None without padding. Every row has a real
        token.

    Raises:
      ValueError: an encoder; shapes that do not fit.
    """
    if not model.cfg.causal:
        raise ValueError(
            f'pooled needs a decoder, whose last token it reads, got kind {model.cfg.kind!r}'
        )
    tok = Tokens.of(length=tokens.shape[1], valid=valid)
    hidden = model.hidden(tokens, tok)
    return jnp.take_along_axis(
        hidden, jnp.broadcast_to(tok.last, len(hidden))[:, None, None], axis=1
    )[:, 0]


@register(
    'tulip',
    kind='conversion',
    card=Card(
        name='TULIP',
        door='embed, project',
        equation='min 1 - mean cos(teacher(x), student(x)); then base b (f l / L - (f - '
        '1))^(D/(D-2))',
        example='tulip.swap(model, \'rope(layout="interleaved")\')',
        use_when=(
            'You have an encoder of texts or images with absolute positions and long texts to read.'
        ),
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def swap(
    model: Transformer, spec: str = 'rope(layout="interleaved")', *, rngs: nnx.Rngs | None = None
) -> Transformer:
    """The student: the same model with a relative encoding in place of its absolute positions.

    Absolute positions are the parts of the chain that add to the token vectors. `spec` takes their
    place. In layers of a pattern without such a part it comes first, since absolute positions reach
    all layers through the stem. All weights and all other parts are kept. At first the student
    computes another function than its teacher; `distill` (stage 1) minimises
    `1 - mean cos(teacher(x), student(x))`. `extend` with `expansion_spec` then makes room for
    longer texts (stage 2). The contrastive training with images of that stage is not part of this
    library. Differs from the paper: any model and any relative encoding; a projection behind the
    pooled output is left to the caller.

    Args:
      model: the teacher, with `learned_absolute` or `sinusoidal`.
      spec: the relative encoding.
      rngs: draws the variables of the new encoding; None for `nnx.Rngs(0)`.

    Raises:
      ValueError: a model without absolute positions, or one that has been extended; an absolute
        encoding as `spec`.
      SpecError: a wrong spec, or one that does not fit the other parts.

    Reference: Najdenkoska, Derakhshani, Asano, van Noord, Worring, Snoek, arXiv 2410.10034.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> student = swap(tiny_model('learned_absolute(max_len=8)'))
      >>> student.cfg.encoding, student(jnp.ones((1, 20), jnp.int32)).shape
      ("rope(layout='interleaved')", (1, 20, 7))
    """
    relative = spec_language.parse(spec).nodes
    if wrong := [node for node in relative if _is_absolute(node)]:
        raise ValueError(
            f'tulip puts a relative encoding in the place of absolute positions, got {wrong[0]}'
        )
    chains = [parse_layer(one).nodes for one in model.cfg.specs]
    if not any(map(_is_absolute, sum(chains, ()))):
        found = ', '.join(' | '.join(node.entry.key for node in nodes) for nodes in chains)
        raise ValueError(
            'tulip replaces absolute positions (learned_absolute, sinusoidal), but the model '
            f'has {found}'
        )
    specs = tuple(str(spec_language.Chain(_swapped(nodes, relative))) for nodes in chains)
    changed = {'pattern': specs} if model.cfg.pattern else {'encoding': specs[0]}
    student = Transformer(
        dataclasses.replace(model.cfg, **changed), rngs=nnx.Rngs(0) if rngs is None else rngs
    )
    for layer_type, (own, block) in enumerate(zip(student.blocks, model.blocks, strict=True)):
        if block.own_mixer is not None:
            continue
        old, new = (
            parts_of(model.encoding(layer_type, block)),
            parts_of(student.encoding(layer_type, own)),
        )
        start = next((i for i, part in enumerate(old) if part.opens('embed')), 0)
        kept = [part for part in old if not part.opens('embed')]
        again = [*new[:start], *new[start + len(new) - len(kept) :]]
        if list(map(nnx.graphdef, kept)) != list(map(nnx.graphdef, again)):
            found, expected = (' | '.join(map(name_of, parts)) for parts in (old, again))
            raise ValueError(
                f'tulip: the encoding of the model ({found}) is not that of its config; swap '
                'first, then extend'
            )
        for ours, theirs in zip(again, kept):
            nnx.update(ours, nnx.state(theirs))
    nnx.update(
        student, nnx.state(model, lambda path, _: path[0] != 'shared' and 'encodings' not in path)
    )
    return student


def _is_absolute(node: spec_language.Node) -> bool:
    return (
        inspect.isclass(node.entry.build)
        and getattr(node.entry.build, 'embed', Encoding.embed) is not Encoding.embed
    )


def _swapped(nodes, relative) -> tuple[spec_language.Node, ...]:
    if nodes[-1].entry.kind == 'mixer':
        return nodes
    start = next((i for i, node in enumerate(nodes) if _is_absolute(node)), 0)
    kept = lambda nodes: tuple(node for node in nodes if not _is_absolute(node))
    return (*nodes[:start], *relative, *kept(nodes[start:]))


def distill(
    teacher: Transformer,
    student: Transformer,
    batches: Int[Array, 'steps B L'],
    valid: Bool[Array, 'steps B L'] | None = None,
    *,
    kind: Kind = 'cosine',
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Transformer, Float[Array, 'steps']]:
    """Stage 1: trains a copy of the student on the `distillation_loss` of pooled outputs.

    One compiled program runs all updates, one for each batch.

    Args:
      teacher: the model to agree with; it is not changed.
      student: e.g. from `swap`; all its parameters are trained.
      batches: token ids of texts, no longer than the teacher's table (77 in the paper).
      valid: False for padding; None without padding. With texts of several lengths, the output is
        trained at every position.
      kind: kind of the loss, see `distillation_loss`.
      optimizer: None for AdamW at the paper's rate 5e-4, weight decay 0.1 of the matrices outside
        encodings.

    Returns:
      The trained student, and the loss before each update.

    Raises:
      ValueError: models of different widths; token ids that one of them does not have; shapes that
        do not fit; an unknown kind.
    """
    if teacher.cfg.width != student.cfg.width:
        raise ValueError(
            f'distill compares outputs of one width, got {teacher.cfg.width} and '
            f'{student.cfg.width}'
        )
    batches, valid = jnp.asarray(batches), None if valid is None else jnp.asarray(valid)
    if batches.ndim != 3 or (valid is not None and valid.shape != batches.shape):
        raise ValueError(
            f'distill takes batches [steps, B, L] and valid like them, got {batches.shape}, '
            f'{np.shape(valid)}'
        )
    for model in (teacher, student):
        model.check_ids(batches, valid)
    if optimizer is None:
        optimizer = optax.adamw(RATE, weight_decay=WEIGHT_DECAY, mask=decayed(student))

    def loss(student, teacher, batch):
        tokens, real = batch
        pair = (pooled(model, tokens, real) for model in (teacher, student))
        return distillation_loss(*pair, kind), None

    return fit(student, teacher, loss, (batches, valid), optimizer)[:2]

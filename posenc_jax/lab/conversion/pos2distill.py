"""Pos2Distill: self-distillation from prompts with the evidence in the first slot to all others."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.conversion.fit import fit
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, Promises, register

RULES = ('r1', 'r2')
RATE = 3e-6  # of the paper
Examples = dict[str, np.ndarray]


def answer_divergence(
    teacher: Float[Array, 'B A V'], student: Float[Array, 'B A V'], *, temperature: float = 1.0
) -> Float[Array, 'B']:
    """`mean over answer tokens of KL(teacher || student)` of every row, float32; no gradient
    reaches the teacher.

    Args:
      teacher, student: logits at the tokens of the same answer, which may lie at different places
        of their prompts.
      temperature: T, by which both logits are divided.

    Raises:
      ValueError: answers of different shapes; a temperature that is not positive.
    """
    if teacher.ndim != 3 or teacher.shape != student.shape:
        raise ValueError(
            f'pos2distill compares logits [B, answer, V] of one answer, got {teacher.shape} and '
            f'{student.shape}'
        )
    if not temperature > 0:
        raise ValueError(f'pos2distill: temperature must be positive, got {temperature}')
    p, q = (
        jax.nn.log_softmax(a.astype(jnp.float32) / temperature)
        for a in (jax.lax.stop_gradient(teacher), student)
    )
    return (jnp.exp(p) * (p - q)).sum(-1).mean(-1)


def slot_shares(
    divergence: Float[Array, 'B'],
    slots: Int[Array, 'B'],
    count: int,
    kept: Bool[Array, 'B'] | None = None,
) -> Float[Array, 'count']:
    """`c = G softmax_g(mean KL of slot g)` over the G trivial slots that are present.

    Trivial slots are all but slot 0. The result is 0 for absent slots and for slot 0.

    Args:
      divergence: KL of every row.
      slots: slot of the evidence in every row, 0 .. count - 1; anchors have slot 0.
      count: n, the number of slots.
      kept: False for rows that do not count; None keeps all rows.
    """
    member = _members(slots, count, kept)
    number = member.sum(0)
    mean = (member * divergence[:, None]).sum(0) / jnp.maximum(number, 1)
    present = (number > 0) & (jnp.arange(count) > 0)
    shares = jnp.where(present, jax.nn.softmax(jnp.where(present, mean, -jnp.inf)), 0.0)
    return jnp.where(present.any(), present.sum() * shares, 0.0)


def _members(slots, count, kept):
    member = slots[:, None] == jnp.arange(count)
    return member if kept is None else member & kept[:, None]


def slot_weights(
    divergence: Float[Array, 'B'],
    slots: Int[Array, 'B'],
    count: int,
    kept: Bool[Array, 'B'] | None = None,
) -> Float[Array, 'B']:
    """`c_g / n_g KL_b / max_g KL` for a row b of slot g; 1 for anchors, 0 for rows not kept.

    Slot g has n_g rows and the largest divergence max_g KL. All figures are those of the global
    batch. Arguments as for `slot_shares`.
    """
    member = _members(slots, count, kept)
    shares = slot_shares(divergence, slots, count, kept) / jnp.maximum(member.sum(0), 1)
    largest = jnp.where(member, divergence[:, None], 0.0).max(0)[slots]
    relative = jnp.where(largest > 0, divergence / jnp.where(largest > 0, largest, 1.0), 1.0)
    weights = jnp.where(slots == 0, 1.0, shares[slots] * relative)
    return weights if kept is None else jnp.where(kept, weights, 0.0)


def joint_weights(
    divergence: Float[Array, 'B'], kept: Bool[Array, 'B'] | None = None
) -> Float[Array, 'B']:
    """`B KL_b / sum KL`, for prompts whose evidence is in several documents and has no slot."""
    divergence = divergence if kept is None else jnp.where(kept, divergence, 0.0)
    number = divergence.shape[0] if kept is None else kept.sum()
    return number * divergence / jnp.maximum(divergence.sum(), 1e-20)


def pos2distill_loss(
    teacher: Float[Array, 'B A V'],
    student: Float[Array, 'B A V'],
    slots: Int[Array, 'B'] | None,
    *,
    count: int = 0,
    kept: Bool[Array, 'B'] | None = None,
    temperature: float = 1.0,
) -> Float[Array, '']:
    """R1: `sum_b w_b KL_b T^2` over a global batch; no gradient flows through the weights or the
    teacher.

    Args:
      teacher, student, temperature: see `answer_divergence`.
      slots: slot of the evidence in each prompt of the student, 0 for anchors; None if the evidence
        is in several documents (`joint_weights`).
      count: n, the number of slots.
      kept: False for rows that do not count, e.g. because the teacher is wrong.

    Raises:
      ValueError: answers of different shapes; a temperature that is not positive; `slots` or `kept`
        of another shape than [B]; slots outside 0 .. count - 1, unless they are traced.
    """
    divergence = answer_divergence(teacher, student, temperature=temperature)
    if kept is not None and kept.shape != divergence.shape:
        raise ValueError(
            f'pos2distill: `kept` must say for each of {divergence.shape[0]} rows whether it '
            f'counts, got {kept.shape}'
        )
    if slots is None:
        weights = joint_weights(divergence, kept)
    else:
        if slots.shape != divergence.shape:
            raise ValueError(
                f'pos2distill needs a slot for each of {divergence.shape[0]} rows, got '
                f'{slots.shape}'
            )
        if not isinstance(slots, jax.core.Tracer) and not (
            0 <= int(slots.min()) and int(slots.max()) < count
        ):
            raise ValueError(
                f'pos2distill: slots lie in 0 .. {count - 1}, got {int(slots.min())} .. '
                f'{int(slots.max())}'
            )
        weights = slot_weights(divergence, slots, count, kept)
    return (jax.lax.stop_gradient(weights) * divergence).sum() * temperature**2


def moved_evidence(
    rng: np.random.Generator,
    documents: Int[np.ndarray, 'E n W'],
    question: Int[np.ndarray, 'E Q'],
    answer: Int[np.ndarray, 'E A'],
    *,
    trivial: int = 4,
) -> Examples:
    """Writes each example as one prompt for the teacher and 1 + trivial prompts for the student.

    The first document is the evidence, and the others are distractors. The teacher reads them in
    the given order. The first prompt of the student, the anchor, keeps the evidence in slot 0. The
    others have it in distinct slots drawn from 1 .. n - 1. All of them shuffle the distractors.

    Args:
      documents, question, answer: token ids of E examples, each with n documents of W tokens.
      trivial: number of prompts of the student beside the anchor.

    Returns:
      'teacher' [E, T] and 'tokens' [E, 1 + trivial, T]: inputs of T = n W + Q + A - 1 tokens, whose
      last A logits predict the answer; 'slots' [E, 1 + trivial], 0 for the anchor; 'answer' [E, A].

    Raises:
      ValueError: arrays of other shapes or of different numbers of examples; `trivial` below 1 or
        above n - 1.
    """
    shapes = documents.shape, question.shape, answer.shape
    if tuple(map(len, shapes)) != (3, 2, 2) or len({shape[0] for shape in shapes}) > 1:
        wanted = 'documents [E, n, W], questions [E, Q] and answers [E, A]'
        raise ValueError(
            f'pos2distill: moved_evidence takes {wanted}, got {", ".join(map(str, shapes))}'
        )
    examples, count, width = documents.shape
    if not 1 <= trivial < count:
        raise ValueError(
            f'pos2distill draws distinct slots from 1 .. {count - 1}: trivial lies in 1 .. '
            f'{count - 1}, got {trivial}; '
            f'nearest: {min(max(trivial, 1), count - 1)}'
        )
    slots = 1 + np.argsort(rng.random((examples, count - 1)), axis=1)[:, :trivial]
    slots = np.concatenate([np.zeros((examples, 1), np.int64), slots], axis=1)
    shuffled = 1 + np.argsort(rng.random((*slots.shape, count - 1)), axis=-1)  # the distractors
    place, slot = np.arange(count), slots[..., None]
    before = np.broadcast_to(np.clip(place - (place > slot), 0, count - 2), (*slots.shape, count))
    order = np.where(place == slot, 0, np.take_along_axis(shuffled, before, axis=-1))
    moved = documents[np.arange(examples)[:, None, None], order]
    tail = np.concatenate([question, answer], axis=1)[:, :-1]
    flat = lambda a: a.reshape(*a.shape[:-2], count * width)
    teacher = np.concatenate([flat(documents), tail], axis=1)
    repeated = np.broadcast_to(tail[:, None], (*slots.shape, tail.shape[1]))
    tokens = np.concatenate([flat(moved), repeated], axis=-1)
    return {'teacher': teacher, 'tokens': tokens, 'slots': slots, 'answer': np.asarray(answer)}


@register(
    'pos2distill',
    kind='conversion',
    card=Card(
        name='Pos2Distill',
        equation='R1: min sum_b w_b KL(teacher, slot 0 || student, slot g), w_b = c_g / n_g KL_b '
        '/ max_g KL; R2: cross-entropy',
        example='pos2distill.distill(model, batches)',
        use_when=(
            'You have a model that answers worse where the evidence stands in some slots, '
            'and can tune it.'
        ),
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def distill(
    model: Transformer,
    batches: Examples,
    *,
    rule: Literal['r1', 'r2'] = 'r1',
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Transformer, Float[Array, 'steps']]:
    """Trains a copy of a model to answer, with the evidence in any slot, as the model does with the
    evidence in the first.

    The copy is the student, and the initial model is the teacher. R1 minimises `sum_b w_b KL_b`
    (see `pos2distill_loss`). R2 minimises the cross-entropy of the teacher's greedy answer, with
    the evidence in the first slot and in others. Neither uses examples that the teacher answers
    wrongly. Differs from the paper: answers have a fixed number of tokens, so teacher forcing can
    tell whether the greedy answer is right; R2 uses this answer, not sampled chains of thought.

    Args:
      model: the initial model; it stays as it is.
      batches: `moved_evidence` of every step, stacked: its arrays with a leading axis of steps.
      rule: 'r1' for retrieval, 'r2' for reasoning.
      optimizer: None for AdamW at the paper's rate 3e-6.

    Returns:
      The student, and the loss before each update.

    Raises:
      ValueError: arrays that are missing or do not fit; token ids that the model does not have;
        negative slots, slots beyond the tokens of a prompt, or an anchor outside slot 0; a teacher
        that answers no example right; an unknown rule.

    Reference: Wang, Xiong, Wang, Li, Chu, Zeng, arXiv 2508.15709.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> rng = np.random.default_rng(0)
      >>> question, answer = (
      ...     np.full((2, 1), 7),
      ...     np.zeros((2, 1), int),
      ... )  # the untrained model happens to give this answer
      >>> one = lambda: moved_evidence(rng, rng.integers(0, 9, (2, 6, 1)), question, answer)
      >>> batches = jax.tree.map(lambda *a: np.stack(a), *(one() for _ in range(3)))
      >>> student, losses = distill(tiny_model('rope()', vocab_size=9), batches)
      >>> losses.shape
      (3,)
    """
    check_choice('pos2distill rule', rule, RULES)
    names = ('tokens', 'teacher', 'slots', 'answer')
    if missing := [name for name in names if name not in batches]:
        raise ValueError(
            f'pos2distill: batches lack {", ".join(missing)}; `moved_evidence` makes all of '
            f'{", ".join(names)}'
        )
    tokens, teacher_tokens, slots, answer = (jnp.asarray(batches[name]) for name in names)
    if not jnp.issubdtype(slots.dtype, jnp.integer):
        raise ValueError(f'pos2distill: slots are integers, got {slots.dtype}')
    if (
        tokens.ndim != 4
        or teacher_tokens.shape != (*tokens.shape[:2], tokens.shape[3])
        or slots.shape != tokens.shape[:3]
    ):
        raise ValueError(
            'pos2distill takes tokens [steps, E, 1 + K, T] with a teacher [steps, E, T] and '
            f'slots [steps, E, 1 + K], got {tokens.shape}, {teacher_tokens.shape}, {slots.shape}'
        )
    if answer.ndim != 3 or answer.shape[:2] != tokens.shape[:2]:
        raise ValueError(
            f'pos2distill takes an answer [steps, E, A] for each example, got {answer.shape} for '
            f'{tokens.shape}'
        )
    vocab = model.cfg.vocab_size
    for name, ids in (('tokens', tokens), ('teacher', teacher_tokens), ('answer', answer)):
        if (
            not jnp.issubdtype(ids.dtype, jnp.integer)
            or int(ids.min()) < 0
            or int(ids.max()) >= vocab
        ):
            found = f'{ids.min()} .. {ids.max()} of {ids.dtype}'
            raise ValueError(
                f'pos2distill: {name} holds token ids 0 .. {vocab - 1} of the model, got {found}'
            )
    if int(slots.min()) < 0 or int(jnp.abs(slots[..., 0]).max()) > 0:
        wrong = slots.min() if int(slots.min()) < 0 else slots[..., 0].max()
        raise ValueError(
            'pos2distill: slots are at least 0, and 0 in the first prompt of each example, its '
            f'anchor, got {wrong}'
        )
    _, examples, copies, length = tokens.shape
    if int(slots.max()) >= length:
        raise ValueError(
            f'pos2distill: a prompt of {length} tokens has at most {length} slots, got slot '
            f'{int(slots.max())}'
        )
    size, words = examples * copies, answer.shape[2]
    count = int(slots.max()) + 1  # slots that no row has count for nothing
    optimizer = optax.adamw(RATE) if optimizer is None else optimizer

    def loss(student, teacher, batch):
        tokens, teacher_tokens, slots, answer = batch
        taught = teacher(teacher_tokens, last=words)
        right = (taught.argmax(-1) == answer).all(-1)
        repeat = lambda a: jnp.repeat(a, copies, axis=0)
        said = student(tokens.reshape(size, length), last=words)
        if rule == 'r1':
            how = dict(count=count, kept=repeat(right))
            return pos2distill_loss(repeat(taught), said, slots.reshape(size), **how), right.any()
        each = optax.softmax_cross_entropy_with_integer_labels(said, repeat(answer)).mean(-1)
        return (each * repeat(right)).sum() / jnp.maximum(right.sum() * copies, 1), right.any()

    arrays = (tokens, teacher_tokens, slots, answer)
    student, losses, taught = fit(model, model, loss, arrays, optimizer)
    if not taught.any():
        raise ValueError(
            'pos2distill: with the evidence in the first slot the model answers none of '
            f'{len(losses) * examples} examples right, so that there is nothing to learn from it; '
            'train it on the first slot first'
        )
    return student, losses

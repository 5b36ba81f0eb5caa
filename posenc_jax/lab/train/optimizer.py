"""AdamW with warm-up and cosine decay."""

from typing import Any

import optax
from ml_collections import ConfigDict


def schedule(train: ConfigDict) -> optax.Schedule:
    """The learning rate by the number of updates so far: linear from lr / warmup to lr, then half a
    cosine from lr to end_lr_fraction * lr at the last step.

    The linear part is written out, because optax.linear_schedule subtracts the peak and adds it
    again: in float32 that is wrong by 1e-5 of the first rates of a long warm-up.
    """
    rise = lambda step: train.lr * ((step + 1) / max(train.warmup, 1))
    fall = optax.cosine_decay_schedule(
        train.lr, max(train.steps - train.warmup, 1), train.end_lr_fraction
    )
    return optax.join_schedules([rise, fall], [train.warmup])


def make_optimizer(train: ConfigDict, decay: dict[str, Any]) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay where `decay` is True."""
    adamw = optax.adamw(
        schedule(train), b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, mask=decay
    )
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw) if train.clip else adamw

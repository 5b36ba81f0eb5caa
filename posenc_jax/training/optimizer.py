"""AdamW with warm-up and cosine decay; the choice of parameters that are trained and that decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import check_choice
from posenc_jax.model.layers import Norm
from posenc_jax.model.projections import Adapter


def learning_rate(
    step: Int[Array, ''], *, lr: float, warmup: int, steps: int, end_lr_fraction: float
) -> Float[Array, '']:
    """The learning rate of the update that follows `step` updates: linear from lr / warmup to lr,
    then half a cosine from lr to end_lr_fraction * lr.

    Args:
      step: number of updates so far.
      lr: the peak.
      warmup: updates of the linear part.
      steps: updates of the whole training.
      end_lr_fraction: where the cosine ends, as a fraction of the peak.

    Example:
      >>> float(learning_rate(jnp.int32(0), lr=1.0, warmup=4, steps=10, end_lr_fraction=0.1))
      0.25
    """
    step = step.astype(jnp.float32)
    progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    cosine = end_lr_fraction + (1 - end_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return lr * jnp.where(step < warmup, (step + 1) / max(warmup, 1), cosine)


TUNES = ('all', 'adapters', 'encodings', 'norms', 'embedding')


def trained(model: nnx.Module, tune: str) -> dict[str, Any]:
    """The parameters that `train.tune` trains, as a tree of booleans like that of the parameters.

    Args:
      tune: 'all', 'adapters' (adapters and encodings), 'encodings', 'norms' or 'embedding' (the
        table of token vectors), or several of them joined by '+', such as
        'encodings+norms+embedding'.

    Raises:
      ValueError: `tune` is unknown, or the model has no such parameters.
    """
    names = tune.split('+')
    for name in names:
        check_choice('train.tune', name, TUNES)
    modules = list(nnx.iter_modules(model))
    if 'adapters' in names and not any(isinstance(module, Adapter) for _, module in modules):
        raise ValueError(
            "train.tune is 'adapters', but the model has none: set model.lora_rank, e.g. 8"
        )
    kinds = dict(all=nnx.Module, adapters=(Adapter, Encoding), encodings=Encoding, norms=Norm)
    chosen = []
    for name in names:
        homes = [path for path, module in modules if isinstance(module, kinds.get(name, ()))]
        inside = lambda path, _: (
            path[-1] == name == 'embedding' or any(path[: len(home)] == home for home in homes)
        )
        chosen.append(_map_params(model, inside))
        if not any(jax.tree.leaves(chosen[-1])):
            raise ValueError(
                f'train.tune is {tune!r}, but the {name} have no parameters; use one of '
                f'{", ".join(TUNES)}'
            )
    return jax.tree.map(lambda *own: any(own), *chosen)


def decays(model: nnx.Module) -> dict[str, Any]:
    """The parameters that weight decay applies to, as a tree of booleans like that of the
    parameters.

    These are the arrays outside encodings that have at least two axes of their own; the stack of
    layers does not count as one. So norms, biases, and what an encoding learns do not decay. A
    variable with the metadata `decays=False` does not either.
    """
    encodings = [path for path, module in nnx.iter_modules(model) if isinstance(module, Encoding)]

    def rule(path, variable):
        axes = variable.get_metadata().get('axes')
        own = variable.get_value().ndim if axes is None else len(axes)
        if not variable.get_metadata().get('decays', True):
            return False
        return own >= 2 and not any(path[: len(prefix)] == prefix for prefix in encodings)

    return _map_params(model, rule)


def _map_params(model: nnx.Module, rule: Callable[[tuple, nnx.Variable], Any]) -> dict[str, Any]:
    """`rule(path, variable)` for every parameter, as a tree like that of the parameters."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param), lambda v: v)
    is_variable = lambda x: isinstance(x, nnx.Variable)
    keys = lambda path: tuple(key.key for key in path)
    return jax.tree_util.tree_map_with_path(
        lambda path, v: rule(keys(path), v), params, is_leaf=is_variable
    )


def make_optimizer(train: ConfigDict, decay: dict[str, Any]) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay where `decay` is True."""
    schedule = lambda count: learning_rate(
        count,
        lr=train.lr,
        warmup=train.warmup,
        steps=train.steps,
        end_lr_fraction=train.end_lr_fraction,
    )
    adamw = optax.adamw(
        schedule, b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, mask=decay
    )
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw) if train.clip else adamw

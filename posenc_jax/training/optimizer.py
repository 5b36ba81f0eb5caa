"""AdamW with warm-up and cosine decay; the choice of parameters that are trained and that decay."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import check_choice
from posenc_jax.model.layers import Norm
from posenc_jax.model.projections import Adapter


def schedule(train: ConfigDict) -> optax.Schedule:
    """The learning rate by the number of updates so far: linear from lr / warmup to lr, then half a
    cosine from lr to end_lr_fraction * lr at the last step.

    The linear part is written out, because optax.linear_schedule subtracts the peak and adds it
    again: in float32 that is wrong by 1e-5 of the first rates of a long warm-up.

    Example:
      >>> train = ConfigDict(dict(lr=1.0, warmup=4, steps=10, end_lr_fraction=0.1))
      >>> float(schedule(train)(0)), float(schedule(train)(3))
      (0.25, 1.0)
    """
    rise = lambda step: train.lr * ((step + 1) / max(train.warmup, 1))
    fall = optax.cosine_decay_schedule(
        train.lr, max(train.steps - train.warmup, 1), train.end_lr_fraction
    )
    return optax.join_schedules([rise, fall], [train.warmup])


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
    adamw = optax.adamw(
        schedule(train), b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, mask=decay
    )
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw) if train.clip else adamw

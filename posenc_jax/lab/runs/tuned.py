"""The parameters that `train.tune` trains."""

from typing import Any

import jax
from flax import nnx

from posenc_jax.lab.model.parameters import map_params
from posenc_jax.layer.layers import Norm
from posenc_jax.layer.projections import Adapter
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice

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
        chosen.append(map_params(model, inside))
        if not any(jax.tree.leaves(chosen[-1])):
            raise ValueError(
                f'train.tune is {tune!r}, but the {name} have no parameters; use one of '
                f'{", ".join(TUNES)}'
            )
    return jax.tree.map(lambda *own: any(own), *chosen)

"""Fields of a config that several architectures read in the same way: activations, heads, the
rotary encoding, sliding windows, and choices that are not supported.
"""

from posenc_jax.lab.pretrained.fields import PretrainedError, shown
from posenc_jax.lab.pretrained.scaling import parameters, rope_spec
from posenc_jax.protocol.errors import nearest

# Our names of activations, by their names in `transformers`.
_ACTIVATIONS = {
    'gelu': 'gelu_erf',
    'gelu_new': 'gelu',
    'gelu_fast': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
}


def activation(config, name: str, default: str, where) -> str:
    """Our name of the activation in the field `name` of a config."""
    found = config.get(name, default)
    if found not in _ACTIVATIONS:
        raise PretrainedError(f'{where}: {name}={found!r}; {nearest(str(found), _ACTIVATIONS)}')
    return _ACTIVATIONS[found]


def refuse(config, where, **expected):
    """Refuses fields with other values than `expected`; a missing field or null is accepted.

    Raises:
      PretrainedError: names the field, its value and the expected value.
    """
    for name, wanted in expected.items():
        found = config.get(name)
        if found is not None and found != wanted:
            raise PretrainedError(
                f'{where}: {name}={shown(found)} is not supported, expected {wanted!r}'
            )


def heads_of(config):
    """Number of query heads, number of key heads, and width of a head."""
    heads = config['num_attention_heads']
    return (
        heads,
        config.get('num_key_value_heads') or heads,
        config.get('head_dim') or config['hidden_size'] // heads,
    )


def rotary_spec(config, head_dim: int, where) -> str:
    """The spec of the rotary encoding, after a check of the lengths of lists of factors."""
    spec, found = rope_spec(config, where), parameters(config, where)
    planes = int(head_dim * found.get('partial_rotary_factor', 1.0)) // 2
    for name in ('long_factor', 'short_factor'):
        if isinstance(factors := found.get(name), list) and len(factors) != planes:
            raise PretrainedError(
                f'{where}: {name} has {len(factors)} entries, expected {planes}, half of the '
                f'rotated width of a head of {head_dim}'
            )
    return spec


def layer_kinds(config, layers: int, where, usual: list[str]) -> list[str]:
    """The kind of attention of every layer, 'full_attention' or 'sliding_attention'.

    Args:
      config: the config of the checkpoint, whose `layer_types` has them.
      layers: number of layers.
      where: name of the file, for error messages.
      usual: the kinds where the config has none.

    Raises:
      PretrainedError: an unknown kind, or not one for every layer.
    """
    kinds = config.get('layer_types')
    if kinds is None:
        return usual
    if unknown := sorted(set(kinds) - {'full_attention', 'sliding_attention'}):
        raise PretrainedError(
            f'{where}: layer_types has {shown(unknown[0])}, expected full_attention or '
            'sliding_attention'
        )
    return one_per_layer(kinds, 'layer_types', layers, where)


def one_per_layer(found: list, name: str, layers: int, where) -> list:
    """The entries of a field, after a check that there is one for every layer."""
    if len(found) != layers:
        raise PretrainedError(
            f'{where}: {name} has {len(found)} entries, expected one for each of {layers} layers'
        )
    return found


def windowed(config, specs: list[str], kinds: list[str]) -> tuple[str, ...]:
    """The spec of each layer of one period: `specs`, with a sliding window in the layers of the
    kind 'sliding_attention' if the config gives its size.
    """
    if (size := config.get('sliding_window')) is not None:
        sliding = [kind == 'sliding_attention' for kind in kinds]
        specs = [f'{spec} | window(size={size})' if s else spec for spec, s in zip(specs, sliding)]
    layers = len(specs)
    for period in range(1, layers + 1):
        if layers % period == 0 and specs == specs[:period] * (layers // period):
            return tuple(specs[:period])
    raise AssertionError('unreachable: all layers together are a period')

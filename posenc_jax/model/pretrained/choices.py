"""Fields of a config that several architectures read in the same way: activations, heads, the
rotary encoding, sliding windows, and choices that are not supported.
"""

from posenc_jax.core.registry import nearest
from posenc_jax.model.pretrained.fields import PretrainedError, shown
from posenc_jax.model.pretrained.scaling import parameters, rope_spec

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


def windowed_pattern(config, spec: str, layers: int, where) -> tuple[str, ...]:
    """The spec of each layer of one period, with a sliding window where the config has one."""
    size, kind = config.get('sliding_window'), config['model_type']
    kinds = config.get('layer_types')
    if unknown := sorted(set(kinds or ()) - {'full_attention', 'sliding_attention'}):
        raise PretrainedError(
            f'{where}: layer_types has {shown(unknown[0])}, expected full_attention or '
            'sliding_attention'
        )
    if kinds is not None and len(kinds) != layers:
        raise PretrainedError(
            f'{where}: layer_types has {len(kinds)} entries, expected one for each of {layers} '
            'layers'
        )
    # The Llama family has no sliding windows, so the field is ignored there.
    used = config.get('use_sliding_window', kind != 'qwen2') and kind != 'llama'
    if size is None or not used:
        return (spec,)
    windowed = f'{spec} | window(size={size})'
    if kinds is None:  # Qwen2: the first max_window_layers layers have full attention
        first = min(config.get('max_window_layers', 0), layers) if kind == 'qwen2' else 0
        kinds = ['full_attention'] * first + ['sliding_attention'] * (layers - first)
    specs = [windowed if kind == 'sliding_attention' else spec for kind in kinds]
    for period in range(1, layers + 1):
        if layers % period == 0 and specs == specs[:period] * (layers // period):
            return tuple(specs[:period])
    raise AssertionError('unreachable: all layers together are a period')

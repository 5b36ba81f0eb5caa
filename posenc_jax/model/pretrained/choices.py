"""What the architectures of public checkpoints read in the same way from a config: choices that are
refused, activations, heads, the rotary encoding and sliding windows.
"""

from posenc_jax.core.registry import nearest
from posenc_jax.model.pretrained.fields import PretrainedError, shown
from posenc_jax.model.pretrained.scaling import parameters, rope_spec

# Of the released names, which are those of `transformers`, ours.
_ACTIVATIONS = {
    'gelu': 'gelu_erf',
    'gelu_new': 'gelu',
    'gelu_fast': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
}


def activation(config, name: str, default: str, where) -> str:
    found = config.get(name, default)
    if found not in _ACTIVATIONS:
        raise PretrainedError(f'{where}: {name}={found!r}; {nearest(str(found), _ACTIVATIONS)}')
    return _ACTIVATIONS[found]


def refuse(config, where, **expected):
    """Choices that exist in a family and change what is computed; null is the usual one."""
    for name, wanted in expected.items():
        found = config.get(name)
        if found is not None and found != wanted:
            raise PretrainedError(
                f'{where}: {name}={shown(found)} is not supported, expected {wanted!r}'
            )


def heads_of(config):
    heads = config['num_attention_heads']
    return (
        heads,
        config.get('num_key_value_heads') or heads,
        config.get('head_dim') or config['hidden_size'] // heads,
    )


def rotary_spec(config, head_dim: int, where) -> str:
    """The rotary encoding, where lists of factors are as long as a head has planes to turn."""
    spec, found = rope_spec(config, where), parameters(config, where)
    planes = int(head_dim * found.get('partial_rotary_factor', 1.0)) // 2
    for name in ('long_factor', 'short_factor'):
        if isinstance(factors := found.get(name), list) and len(factors) != planes:
            raise PretrainedError(
                f'{where}: {name} has {len(factors)} entries, expected {planes}, half of what '
                f'turns of a head of {head_dim}'
            )
    return spec


def windowed_pattern(config, spec: str, layers: int, where) -> tuple[str, ...]:
    """The encoding of each layer of one period: with a sliding window where the config says so."""
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
    used = (
        config.get('use_sliding_window', kind != 'qwen2') and kind != 'llama'
    )  # Llama's window is not one of the family
    if size is None or not used:
        return (spec,)
    windowed = f'{spec} | window(size={size})'
    if kinds is None:  # Qwen2: the first max_window_layers layers see everything
        first = min(config.get('max_window_layers', 0), layers) if kind == 'qwen2' else 0
        kinds = ['full_attention'] * first + ['sliding_attention'] * (layers - first)
    specs = [windowed if kind == 'sliding_attention' else spec for kind in kinds]
    for period in range(1, layers + 1):
        if layers % period == 0 and specs == specs[:period] * (layers // period):
            return tuple(specs[:period])
    raise AssertionError('the whole is a period of itself')

"""The architectures of public checkpoints that a `Transformer` can have, by `model_type`."""

import difflib
from collections.abc import Callable
from typing import Any

from posenc_jax.lab.pretrained.config_fields import checked
from posenc_jax.lab.pretrained.fields import PretrainedError, shown
from posenc_jax.lab.pretrained.gemma import gemma
from posenc_jax.lab.pretrained.gpt import bloom, gpt2, gpt_neox, mpt
from posenc_jax.lab.pretrained.layout import Architecture
from posenc_jax.lab.pretrained.llama import llama


def describe(config: dict[str, Any], where: object) -> Architecture:
    """The architecture that a config describes.

    Args:
      config: the config of the checkpoint, with the fields of `config.json`.
      where: name of the file, for error messages.

    Raises:
      PretrainedError: an unknown architecture, a missing size, or a choice that `Transformer` does
        not support.
    """
    kind = supported(config, where)
    if config.get('quantization_config'):
        raise PretrainedError(
            f'{where}: quantization_config is not supported, expected weights in floating point'
        )
    config = checked(config, where)
    try:
        return ARCHITECTURES[kind](config, where)
    except KeyError as error:
        raise PretrainedError(f'{where}: the config of a {kind} model lacks {error}') from None
    except PretrainedError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise PretrainedError(
            f'{where}: the config of this {kind} model has a value that does not fit: {error}'
        ) from error


def supported(config: dict[str, Any], where: object) -> str:
    """The name of the architecture; arguments are those of `describe`.

    Raises:
      PretrainedError: it is not read; the message has what is missing, if that is known, and the
        architectures that are read.
    """
    kind = config.get('model_type')
    if isinstance(kind, str) and kind in ARCHITECTURES:
        return kind
    mixture = any(config.get(name) for name in _EXPERTS)
    missing = _MISSING.get(str(kind)) or (MIXTURE if mixture else '')
    if missing:
        raise PretrainedError(
            f'{where}: architecture {shown(kind)} is not supported yet: it has {missing}; '
            f'supported: {", ".join(ARCHITECTURES)}'
        )
    close = difflib.get_close_matches(str(kind)[:100], ARCHITECTURES, n=1, cutoff=0)
    raise PretrainedError(
        f'{where}: unknown architecture {shown(kind)}; supported: {", ".join(ARCHITECTURES)}; '
        f'the nearest is {close[0]!r}'
    )


MIXTURE = 'feed-forward networks that are mixtures of experts, and every layer here has one network'
# Fields of a config that count the experts of a mixture.
_EXPERTS = ('num_local_experts', 'num_experts', 'n_routed_experts', 'moe_num_experts')
_CHUNKS = 'layers that attend within chunks of the text'
_MATRYOSHKA = (
    'several streams of token vectors, vectors of the tokens for every layer, and layers that '
    'share keys and values'
)
# What architectures have that a `Transformer` has not.
_MISSING = {
    'llama4_text': f'{_CHUNKS}, and {MIXTURE}',
    'llama4': f'images, {_CHUNKS}, and {MIXTURE}',
    'gemma3': 'images; its text model alone has the model_type gemma3_text',
    'gemma3n_text': _MATRYOSHKA,
    'gemma3n': f'images and sound, {_MATRYOSHKA}',
    **dict.fromkeys(
        (
            'mixtral',
            'phimoe',
            'dbrx',
            'olmoe',
            'gpt_oss',
            'granitemoe',
            'qwen2_moe',
            'qwen3_moe',
            'deepseek',
        ),
        MIXTURE,
    ),
    **dict.fromkeys(
        ('deepseek_v2', 'deepseek_v3', 'deepseek_v32'),
        f'keys and values from a shared latent vector, and {MIXTURE}',
    ),
}
ARCHITECTURES: dict[str, Callable[[dict[str, Any], object], Architecture]] = {
    'llama': llama,
    'mistral': llama,
    'qwen2': llama,
    'qwen3': llama,
    'phi3': llama,
    'smollm3': llama,
    'olmo2': llama,
    'gemma2': gemma,
    'gemma3_text': gemma,
    'gpt_neox': gpt_neox,
    'gpt2': gpt2,
    'bloom': bloom,
    'mpt': mpt,
}

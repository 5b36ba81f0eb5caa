"""The architectures of public checkpoints that a `Transformer` can have, by `model_type`."""

from collections.abc import Callable
from typing import Any

from posenc_jax.core.registry import nearest
from posenc_jax.model.pretrained.config_fields import checked
from posenc_jax.model.pretrained.fields import PretrainedError, shown
from posenc_jax.model.pretrained.gemma import gemma
from posenc_jax.model.pretrained.gpt import bloom, gpt2, gpt_neox, mpt
from posenc_jax.model.pretrained.layout import Architecture
from posenc_jax.model.pretrained.llama import llama


def describe(config: dict[str, Any], where: object) -> Architecture:
    """The architecture that a config describes.

    Args:
      config: the config of the checkpoint, with the fields of `config.json`.
      where: name of the file, for error messages.

    Raises:
      PretrainedError: an unknown architecture, a missing size, or a choice that `Transformer` does
        not support.
    """
    kind = config.get('model_type')
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise PretrainedError(
            f'{where}: unknown architecture {shown(kind)}; '
            f'{nearest(str(kind)[:100], ARCHITECTURES)}'
        )
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

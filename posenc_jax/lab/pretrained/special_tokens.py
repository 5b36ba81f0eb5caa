"""The special tokens that a checkpoint declares, such as the end of a text."""

import pathlib
from typing import Any

from posenc_jax.lab.pretrained.config_fields import FIELDS
from posenc_jax.lab.pretrained.fields import PretrainedError, shown

# Default ids that `transformers` writes for any vocabulary. A model with a smaller vocabulary has
# no such token.
_DEFAULT_IDS = {'gpt2': 50256, 'phi3': 32000}


def special_ids(name: str, fields: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    """The token ids in a field such as 'eos_token_id': none, one or several.

    Args:
      name: name of the field.
      fields: the fields of the file.
      config: the config of the checkpoint.
    """
    declared, default = fields.get(name), _DEFAULT_IDS.get(str(config.get('model_type')))
    several = declared if isinstance(declared, list) else () if declared is None else (declared,)
    return tuple(
        token
        for token in several
        if default is None or token != default or token < config['vocab_size']
    )


def check_ids(
    fields: dict[str, Any],
    config: dict[str, Any],
    file: pathlib.Path,
    *,
    also: tuple[str, ...] = (),
) -> None:
    """Refuses a file whose special tokens are not in the vocabulary, for the tokens that are used:
    the end of a text and those in `also`.

    Other special tokens are not checked: in released files the padding token, for example, may lie
    just behind the embedding table.

    Raises:
      PretrainedError: names the field, the id and the vocabulary.
    """
    size: Any = config.get('vocab_size')
    if not FIELDS['vocab_size'].holds(size):  # `describe` raises the error for this
        return
    for name in ('eos_token_id', *also):
        for token in special_ids(name, fields, config):
            if type(token) is not int or not 0 <= token < size:
                raise PretrainedError(
                    f'{file}: {name}={shown(token)}, expected a token in 0 .. {size - 1}'
                )

"""The tokens that a checkpoint declares for the ends of a text."""

import pathlib
from typing import Any

from posenc_jax.model.pretrained.config_fields import FIELDS
from posenc_jax.model.pretrained.fields import PretrainedError, shown

# Ids that `transformers` writes where nobody chose one, whatever the vocabulary: such a model has
# no such token.
_DEFAULT_IDS = {'gpt2': 50256, 'phi3': 32000}


def special_ids(name: str, fields: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that a file declares as e.g. 'eos_token_id': none, one or several.

    Args:
      name: of the field.
      fields: what the file holds.
      config: of the checkpoint.
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
    """Whether the tokens that a file declares and that are used are rows of the embedding table.

    Released files declare others as they like, e.g. padding just behind the table.
    """
    size: Any = config.get('vocab_size')
    if not FIELDS['vocab_size'].holds(size):  # which is said where the model is described
        return
    for name in ('eos_token_id', *also):
        for token in special_ids(name, fields, config):
            if type(token) is not int or not 0 <= token < size:
                raise PretrainedError(
                    f'{file}: {name}={shown(token)}, expected a token in 0 .. {size - 1}'
                )

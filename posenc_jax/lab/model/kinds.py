"""The two families of models, transformers and fields, each built from its own config."""

from flax import nnx

from posenc_jax.lab.model import transformer
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.errors import SpecError

ModelConfig = TransformerConfig | FieldConfig
Model = Transformer | Field


def build_model(cfg: ModelConfig, rngs: nnx.Rngs) -> Model:
    """The model of a config."""
    return Field(cfg, rngs=rngs) if isinstance(cfg, FieldConfig) else Transformer(cfg, rngs=rngs)


def abstract_model(cfg: ModelConfig, extend: str = '') -> Model:
    """The model, with its context extension, as shapes without values.

    Raises:
      SpecError: the extension of a field, which has no context.
    """
    if not isinstance(cfg, FieldConfig):
        return transformer.abstract_model(cfg, extend)
    if extend:
        raise SpecError(f'extend is {extend!r}, but a field has no context to extend')
    return nnx.eval_shape(lambda: Field(cfg, rngs=nnx.Rngs(0)))

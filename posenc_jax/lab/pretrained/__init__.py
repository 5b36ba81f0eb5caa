"""Public checkpoints: Hugging Face directories and GGUF files."""

from posenc_jax.lab.pretrained.export import export_pretrained
from posenc_jax.lab.pretrained.load import Pretrained, load_pretrained
from posenc_jax.lab.pretrained.sources import PretrainedError, is_pretrained

__all__ = ['Pretrained', 'PretrainedError', 'export_pretrained', 'is_pretrained', 'load_pretrained']
__dir__ = __all__.copy

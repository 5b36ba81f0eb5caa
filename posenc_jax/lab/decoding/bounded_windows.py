"""Decoding that keeps of every layer with a sliding window only the keys that it can still see."""

import dataclasses

import jax

from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache
from posenc_jax.layer.cross import CrossState
from posenc_jax.layer.window_cache import bounded, reach


def bounded_windows(model: Transformer, cache: Cache) -> Cache:
    """The cache with the layers that have a `window` cut down to it; `decode_step` goes on with it.

    A layer whose window is not smaller than the capacity, and every layer of another kind, stays as
    it is.

    Args:
      model: the model that filled the cache.
      cache: as `prefill` or `decode_step` of `posenc_jax.lab.decoding.decode` returned it.
    """
    windows = _reaches(model)
    layers = []
    for number, state in enumerate(cache.layers):
        size = windows[number % len(windows)]
        own = state.own if isinstance(state, CrossState) else state
        if size is not None and size < cache.capacity and isinstance(own, LayerCache):
            own = bounded(own, size, cache.cursor)
        layers.append(CrossState(own, state.source) if isinstance(state, CrossState) else own)
    return dataclasses.replace(cache, layers=tuple(layers))


def _reaches(model: Transformer) -> list[int | None]:
    """`reach` of every layer type."""
    return [
        None if block.own_mixer is not None else reach(model.encoding(layer_type, block))
        for layer_type, block in enumerate(model.blocks)
    ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoundedWindows(Decoding):
    """For `generate`: calls `bounded_windows` after the prompt. Logits are those of a full cache.

    Raises:
      ValueError: in `generate`, a model without a layer that has a `window`.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> generate(
      ...     tiny_model('window(size=4)'),
      ...     jnp.ones((1, 5), int),
      ...     max_new_tokens=9,
      ...     temperature=0.0,
      ...     decoding=BoundedWindows(),
      ... ).shape
      (1, 14)
    """

    def check(self, model):
        if not any(size is not None for size in _reaches(model)):
            raise ValueError(
                'BoundedWindows keeps the keys that a window can see, but no layer of this model '
                "has one, as 'window(size=64) | rope()' has"
            )

    def prefill(self, model, empty, prompts):
        logits, cache = super().prefill(model, empty, prompts)
        return logits, bounded_windows(model, cache)

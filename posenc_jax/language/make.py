"""`make` builds an encoding from a spec string."""

from flax import nnx

from posenc_jax.language import spec as spec_language
from posenc_jax.language.spec import CONTEXT_NAMES
from posenc_jax.protocol.composite import ChainedEncoding, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError, is_size, nearest, quoted
from posenc_jax.protocol.masks import Causal, Document, Full


def make(spec: str | Encoding, *, causal: bool | None = None, **context) -> Encoding:
    """Builds an encoding from a spec string.

    Args:
      spec: e.g. 'rope(freqs=yarn(factor=4.0)) | alibi()'.
      causal: True or False adds the mask that a decoder or encoder needs unless the chain decides
        causality itself, and keeps packed documents apart; None adds nothing.
      **context: what the model knows and the spec need not repeat: `heads`, `kv_heads`, `head_dim`,
        `model_dim`, `train_len`, `rngs` (an `nnx.Rngs`).

    Raises:
      SpecError: the string is wrong, the context lacks an argument or has an unknown one, or the
        parts exclude each other.
    """
    for name in context:
        if name not in CONTEXT_NAMES:
            raise SpecError(f'make() has no argument {name!r}; {nearest(name, CONTEXT_NAMES)}')
    if not isinstance(rngs := context.get('rngs', nnx.Rngs(0)), nnx.Rngs):
        raise SpecError(f'make() takes rngs as nnx.Rngs, e.g. nnx.Rngs(0), got {quoted(rngs)}')
    if isinstance(spec, str):
        for name in ('heads', 'kv_heads', 'head_dim', 'model_dim'):
            size = context.get(name, 1)
            if not is_size(size):
                raise SpecError(f'make() takes {name} as a positive integer, got {size!r}')
        context.setdefault('kv_heads', context['heads']) if 'heads' in context else None
        if context.get('heads', 0) % context.get('kv_heads', 1):
            raise SpecError(
                f'{context["heads"]} heads are not a multiple of {context["kv_heads"]} kv_heads'
            )
        context.setdefault('rngs', nnx.Rngs(0))
        built = [spec_language.build(node, context) for node in spec_language.parse(spec).nodes]
    elif isinstance(spec, Encoding):
        built = [spec]
    else:
        raise SpecError(
            'make() takes a spec string like "rope() | alibi()" or an encoding, got '
            f'{type(spec).__name__}'
        )
    parts = [part for encoding in built for part in parts_of(encoding)]
    if causal is not None:
        for part in parts:
            if not causal and hasattr(part, 'card') and part.card.causal_only:
                raise SpecError(f'{part.card.key} is defined for causal attention only')
        traits = ChainedEncoding(parts).traits
        if 'decides_causality' not in traits:
            parts.append(Causal() if causal else Full())
        if 'decides_segments' not in traits:
            parts.append(Document())
    return chain(*parts)

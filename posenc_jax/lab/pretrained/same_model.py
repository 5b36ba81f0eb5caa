"""In what a model of ours differs from the one that a public config declares."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.pretrained.public_config import WRITTEN_RULES, Public, parts_by_key
from posenc_jax.language.make import make
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.methods.learned_absolute import LearnedAbsolute
from posenc_jax.methods.rope import Rotary
from posenc_jax.methods.soft_cap import SoftCap
from posenc_jax.methods.window import Window
from posenc_jax.protocol.registry import entries

_WITHOUT_EFFECT = ('nope', 'causal', 'document')
_COMPARED = (
    'kind', 'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp', 'mlp_width', 'norm',
    'norm_place', 'qk_norm', 'head_norm', 'bias', 'parallel', 'epsilon', 'embedding_norm', 'tie',
    'lora_rank', 'output_cap', 'pool', 'channels',
)  # fmt: skip


def differences(model: Public, read: TransformerConfig) -> list[str]:
    """In what a model differs from the one that a config declares, with what is expected; empty if
    they are the same.
    """
    ours = model.cfg
    found = [
        f'model.{name}={getattr(ours, name)!r}, expected {getattr(read, name)!r}'
        for name in _COMPARED
        if getattr(ours, name) != getattr(read, name)
    ]
    if ours.tie and ours.embedding_scale != read.embedding_scale:
        found.append(
            f'the tied table is multiplied by {ours.embedding_scale:.4g} at the input, expected '
            f'{read.embedding_scale:.4g} or model.tie=False'
        )
    context: Any = dict(
        heads=ours.heads, kv_heads=ours.kv_heads, head_dim=ours.head_dim, model_dim=ours.width
    )
    specs, seen = read.specs * (ours.layers // len(read.specs)), set()
    for parts, spec in zip(model.layers, specs):
        theirs = parts_by_key(make(spec, causal=True, train_len=read.train_len, **context))
        if not _same(_signature(parts, ours.train_len), _signature(theirs, ours.train_len)):
            own = [key for key in parts if key not in _WITHOUT_EFFECT]
            extended = sorted(set(own) & {entry.key for entry in entries('extension')})
            seen.add(
                f'transformers has no such extension in a config: {", ".join(extended)}; of the '
                f'extensions it has the frequency rules {", ".join(WRITTEN_RULES)}'
                if extended
                else f'layers with {" | ".join(own) or "nope"}, expected {spec}'
            )
    return [*found, *sorted(seen)]


def _signature(parts: Mapping[str, Any], train_len: int) -> dict[str, Any]:
    """What decides the results of each part that has an effect."""
    lengths = jnp.asarray([[train_len, 4 * train_len]])
    found = {}
    for key, part in parts.items():
        if key in _WITHOUT_EFFECT:
            continue
        match part:
            case Rotary():
                inv_freq, temperature = part.frequencies(lengths)
                found[key] = [part.layout == 'half', part.rotary_dim, inv_freq, temperature]
            case Window():
                found[key] = [part.size, part.aligned]
            case SoftCap():
                found[key] = [part.limit]
            case ALiBi() if not part.learns and part.variant == 'symmetric':
                found[key] = [part.slopes[...]]
            case LearnedAbsolute():
                found[key] = [part.max_len]
            case _:
                found[key] = [np.nan]  # as nothing that a config declares
    return found


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    equal = lambda a, b: np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=0)
    return ours.keys() == theirs.keys() and all(
        equal(a, b) for key in ours for a, b in zip(ours[key], theirs[key])
    )

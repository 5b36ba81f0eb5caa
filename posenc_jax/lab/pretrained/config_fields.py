"""The config fields that are read, of all architectures, and the values that each may have."""

from collections.abc import Mapping
from typing import Any

from posenc_jax.lab.pretrained.fields import FLAG, Kind, check, number, one_of, several, text, whole

# The bounds are far above those of published models. They are low enough that a config within them
# does not exhaust the memory before its tensors are compared with the file. Positions have 32 bits.
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH = (
    whole(1, most) for most in (2**20, 2**12, 2**14, 2**24, 2**31 - 1)
)
EPSILON, BASE, PARTIAL = number(1e-30, 1), number(1, 1e18), number(1e-6, 1)
STRENGTH = number(1e-6, 1e6)


def _nested(most: int) -> Kind:
    """An object of at most `most` fields. Names are bounded too, because messages print them."""
    named = lambda name: len(name) <= 40 and name.isprintable()
    return Kind(
        f'an object of at most {most} fields with names of at most 40 printable letters',
        lambda value: isinstance(value, dict) and len(value) <= most and all(map(named, value)),
    )


FIELDS: dict[str, Kind] = {
    **dict.fromkeys(
        ('hidden_size', 'intermediate_size', 'head_dim', 'n_embd', 'n_embed', 'n_inner', 'd_model'),
        WIDTH,
    ),
    **dict.fromkeys(('num_hidden_layers', 'n_layer', 'n_layers'), LAYERS),
    **dict.fromkeys(('num_attention_heads', 'num_key_value_heads', 'n_head', 'n_heads'), HEADS),
    **dict.fromkeys(
        (
            'max_position_embeddings',
            'original_max_position_embeddings',
            'n_positions',
            'n_ctx',
            'seq_length',
            'max_seq_len',
        ),
        LENGTH,
    ),
    **dict.fromkeys(('rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon'), EPSILON),
    **dict.fromkeys(('rope_theta', 'rotary_emb_base', 'rope_local_base_freq'), BASE),
    **dict.fromkeys(('partial_rotary_factor', 'rotary_pct'), PARTIAL),
    **dict.fromkeys(('tie_word_embeddings', 'use_sliding_window', 'use_parallel_residual'), FLAG),
    **dict.fromkeys(('rope_scaling', 'rope_parameters'), _nested(16)),
    'attn_config': _nested(64),
    **dict.fromkeys(('hidden_act', 'hidden_activation', 'activation_function'), text(100)),
    **dict.fromkeys(
        ('attn_logit_softcapping', 'final_logit_softcapping', 'query_pre_attn_scalar'),
        number(1e-6, 1e6),
    ),
    **dict.fromkeys(('no_rope_layer_interval', 'sliding_window_pattern'), whole(1, 2**12)),
    'no_rope_layers': several(one_of(0, 1), 2**12),
    'vocab_size': VOCABULARY,
    'sliding_window': LENGTH,
    'max_window_layers': whole(0, 2**12),
    'layer_types': several(text(100), 2**12),
}
# Other fields inside an object. They are bounded because later messages print their names and
# values.
UNREAD = Kind(
    'a number, true, false, an object or a text of at most 100 characters',
    lambda value: (
        isinstance(value, (str, bool, int, float))
        and len(str(value)) <= 100
        or isinstance(value, dict)
    ),
)
ATTENTION = {'alibi_bias_max': number(1e-3, 1e3)}
# One factor for each plane; a factor of 1e30 marks a plane that is not rotated.
_FACTORS = several(number(1e-6, 1e30), 2**13)
ROPE: dict[str, Kind] = {
    'rope_theta': BASE,
    'partial_rotary_factor': PARTIAL,
    'original_max_position_embeddings': LENGTH,
    'factor': number(1, 1e6),
    **dict.fromkeys(
        ('beta_fast', 'beta_slow', 'attention_factor', 'low_freq_factor', 'high_freq_factor'),
        STRENGTH,
    ),
    **dict.fromkeys(('mscale', 'mscale_all_dim'), number(0, 1e6)),
    **dict.fromkeys(('long_factor', 'short_factor'), _FACTORS),
    'truncate': FLAG,
}
_INNER = {'rope_scaling': ROPE, 'rope_parameters': ROPE, 'attn_config': ATTENTION}


def checked(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Checks the fields of a config, and returns it without those that are null.

    Args:
      config: the config of a checkpoint.
      where: name of the file, for error messages.

    Raises:
      PretrainedError: a value of a wrong type or out of bounds; the message names the field.
    """
    found = {name: value for name, value in config.items() if value is not None}
    for name, kind in FIELDS.items():
        if name in found:
            check(found[name], kind, where, name)
    for name, kinds in _INNER.items():
        for inner, value in found.get(name, {}).items():
            if value is not None:
                check(value, kinds.get(inner, UNREAD), where, f'{name}.{inner}')
            if isinstance(value, dict):  # the rope of one kind of layers
                check(value, _nested(16), where, f'{name}.{inner}')
                for own, given in value.items():
                    if given is not None:
                        check(given, kinds.get(own, UNREAD), where, f'{name}.{inner}.{own}')
    return found

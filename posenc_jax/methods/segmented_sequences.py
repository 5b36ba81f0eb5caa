"""Training on pieces of long texts at their original positions, with a stretched learned table."""

import dataclasses
import numbers

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.memory import readable
from posenc_jax.language.spec import CONTEXT, MAX_BYTES, Node
from posenc_jax.methods.learned_absolute import LearnedAbsolute
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import is_size
from posenc_jax.protocol.registry import Card, Promises, register


def segmented_sequences_chunk_ids(
    rng: np.random.Generator, source_len: int, count: int, segment_len: int
) -> Int[np.ndarray, ' N']:
    """Original positions of `count` tokens in whole segments, drawn without replacement, in order.

    Raises:
      ValueError: segments that do not divide the text and the count, or a count beyond the text.
    """
    check_chunks(source_len, count, segment_len)
    drawn = np.sort(rng.choice(source_len // segment_len, count // segment_len, replace=False))
    return (drawn[:, None] * segment_len + np.arange(segment_len)).reshape(-1)


def check_chunks(source_len: int, count: int, segment_len: int) -> None:
    """Whether `segmented_sequences_chunk_ids` can draw; arguments and errors are its own."""
    _check_count(source_len, count)
    if not isinstance(segment_len, numbers.Integral) or segment_len < 1:
        raise ValueError(
            f'segmented_sequences: segment_len must be at least 1, an integer, got {segment_len}'
        )
    for what, size in (
        (f'the {count} tokens of a row', count),
        (f'the {source_len} tokens of the text', source_len),
    ):
        if size % segment_len:
            raise ValueError(
                f'segmented_sequences: segments of {segment_len} tokens do not divide {what}'
            )


def segmented_sequences_prefix_ids(
    rng: np.random.Generator, source_len: int, count: int, prefix_len: int, *, last: bool = True
) -> Int[np.ndarray, ' N']:
    """Original positions of `count` tokens: `prefix_len` single tokens, then consecutive ones.

    Args:
      rng: draws the single tokens, uniformly without replacement from all before the run.
      source_len: tokens of the text.
      count: N.
      prefix_len: p, how many single tokens.
      last: the run ends the text; False: it begins at a random place, with at least p tokens before
        it.

    Raises:
      ValueError: a prefix longer than the count or with no run after it; a count beyond the text.
    """
    check_prefix(source_len, count, prefix_len)
    run = count - prefix_len
    begin = source_len - run if last else int(rng.integers(prefix_len, source_len - run + 1))
    return np.concatenate(
        [np.sort(rng.choice(begin, prefix_len, replace=False)), np.arange(begin, begin + run)]
    )


def check_prefix(source_len: int, count: int, prefix_len: int) -> None:
    """Whether `segmented_sequences_prefix_ids` can draw; arguments and errors are its own."""
    _check_count(source_len, count)
    if not 0 <= prefix_len < count:
        raise ValueError(
            f'segmented_sequences: prefix_len must lie in 0 .. {count - 1}, so that a run '
            f'follows in a row of {count} tokens, '
            f'got {prefix_len}'
        )


def _check_count(source_len, count):
    if not 1 <= count <= source_len:
        raise ValueError(
            f'segmented_sequences: a row takes 1 .. {source_len} tokens of a text of '
            f'{source_len}, got {count}'
        )


def segmented_sequences_table(table: Float[Array, 'M D'], factor: int) -> Float[Array, 'sM D']:
    """`E_new[p] = (1-t) E[floor(p/s)] + t E[min(floor(p/s) + 1, M - 1)]`, t the fraction of p/s.

    The old rows are kept, s positions apart.

    Raises:
      ValueError: a factor that is no integer of at least 1.
    """
    check_stretch(factor)
    whole, rest = np.divmod(np.arange(len(table) * factor), factor)
    above = np.minimum(whole + 1, len(table) - 1)
    # Of p/s in float32 the fraction would lose its last digits.
    share = (rest / factor).astype(np.float32)[:, None]
    return table[whole] + (table[above] - table[whole]) * share


def check_stretch(factor: int) -> int:
    """`factor`, if it is an integer of at least 1.

    Raises:
      ValueError: it is not.
    """
    if not is_size(factor):
        raise ValueError(
            f'segmented_sequences: factor must be an integer of at least 1, got {factor!r}'
        )
    return factor


@register(
    'segmented_sequences',
    kind='extension',
    card=Card(
        name='segmented sequences',
        door='place, embed',
        equation='E_new[p] = (1-t) E[floor(p/s)] + t E[floor(p/s) + 1], t = frac(p/s); trained '
        'on segments of texts with their original p',
        example='segmented_sequences(factor=4)',
        use_when=(
            'You tune a model with a learned table of positions to longer texts; to '
            'compare with the model before, since a measured claim is partly contrary.'
        ),
        share='model',
        promises=Promises(needs_training=True, fused=True),
    ),
)
def segmented_sequences(factor: int, encoding: Encoding = CONTEXT) -> LearnedAbsolute:
    """Stretches a learned table to s times as many rows by interpolation; acts on token vectors.

    `E_new[p] = (1-t) E[floor(p/s)] + t E[min(floor(p/s) + 1, M-1)]`, `t = frac(p/s)`: as far as the
    text is s times as long, it looks to the model as before. The rest of the method is data: the
    task `segmented_text` trains at the old length on pieces of texts s times as long, with their
    original positions and their true next tokens (`segmented_sequences_chunk_ids`,
    `segmented_sequences_prefix_ids`), which RoPE and ALiBi take as they are. Differs from the
    paper: it has no public code, so these are chosen here: how segments are drawn,
    that positions are never renumbered, that the target at the end of a segment is the next token
    of the text, and that rows after the last old one repeat it.

    Args:
      factor: s, new length / old length, an integer.
      encoding: `learned_absolute` with `ids='plain'`; given by `extend`.

    Raises:
      ValueError: a factor that is no integer of at least 1, or that would make a table of more
        than 1 GiB; another encoding, or one whose table has rows for no position.

    Reference: Karypis, McAuley, Karypis, arXiv 2310.14633.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.extend import extend
      >>> short = pj.make('learned_absolute(max_len=8)', model_dim=4)
      >>> longer = extend(short, 'segmented_sequences(factor=4)')
      >>> longer.max_len, longer.vectors.shape
      (32, (32, 4))
    """
    check_stretch(factor)
    if not isinstance(encoding, LearnedAbsolute) or encoding.ids != 'plain':
        found = name_of(encoding) if isinstance(encoding, Encoding) else repr(encoding)
        found += f'(ids={encoding.ids!r})' if isinstance(encoding, LearnedAbsolute) else ''
        raise ValueError(
            f"segmented_sequences stretches learned_absolute(ids='plain'), got {found}"
        )
    rows, width = encoding.vectors.shape
    if (needed := 4 * rows * width * factor) > MAX_BYTES:
        raise ValueError(
            f'segmented_sequences: factor={factor} would make a table of {rows * factor} rows, '
            f'which takes {readable(needed)}; at most {readable(MAX_BYTES)} are accepted'
        )
    longer = nnx.clone(encoding)
    longer.max_len = encoding.max_len * factor
    arguments = {**dict(encoding._spec_arguments), 'max_len': str(longer.max_len)}
    longer._spec_arguments = tuple(arguments.items())
    vectors = segmented_sequences_table(encoding.vectors[...], factor)
    longer.vectors = nnx.Param(vectors, axes=('positions', 'width'))
    return longer


def _written(part: Node, factor: int) -> Node:
    """The call of `learned_absolute` that builds what `segmented_sequences` makes of it."""
    rows = part.arguments['max_len'] * check_stretch(factor)
    return dataclasses.replace(part, arguments={**part.arguments, 'max_len': rows})


segmented_sequences.extends, segmented_sequences.written = (LearnedAbsolute,), _written

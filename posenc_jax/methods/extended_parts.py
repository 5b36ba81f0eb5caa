"""Checks of the encodings that an extension can wrap."""

from posenc_jax.methods.extend import is_relative_bias
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.encoding import Encoding


def check_part(
    extension: str, encoding: Encoding, *, bias: bool = False, even: bool = False
) -> Encoding:
    """Returns `encoding` if it is a rotary encoding of fixed frequencies.

    Args:
      extension: name of the extension, for error messages.
      encoding: the encoding to extend.
      bias: a relative bias is accepted too.
      even: the frequencies must be the same at all positions.

    Raises:
      ValueError: the encoding does not fit; the message says what was found.
    """
    wanted = 'a rotary encoding' + (' or a relative bias such as alibi()' if bias else '')
    if not (isinstance(encoding, Rotary) or (bias and is_relative_bias(type(encoding)))):
        found = name_of(encoding) if isinstance(encoding, Encoding) else repr(encoding)
        raise ValueError(
            f'{extension} extends {wanted}, got {found}; chain other encodings beside it, not '
            'inside it'
        )
    if isinstance(encoding, Rotary) and encoding.uses_length:
        raise ValueError(
            f'{extension} needs frequencies that do not depend on the current length, got '
            f'{encoding.freqs}'
        )
    if even and getattr(encoding.freqs, 'start', 0):
        raise ValueError(
            f'{extension} needs the same frequencies at all positions, got {encoding.freqs}; use '
            'start=0'
        )
    return encoding

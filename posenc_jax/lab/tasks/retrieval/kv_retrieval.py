"""Key-value retrieval: the value of one key of a long JSON object of random identifiers."""

import dataclasses
import uuid
from typing import ClassVar

import numpy as np

from posenc_jax.lab.tasks.retrieval.text import TextRetrieval
from posenc_jax.protocol.bounds import Share
from posenc_jax.protocol.registry import register

PROMPT = (
    'Extract the value corresponding to the specified key in the JSON object below.\n\nJSON '
    'data:\n{json}\n\n'
    'Key: "{key}"\nCorresponding value:'
)
OPENING = ' "'


@register('kv_retrieval', kind='task')
@dataclasses.dataclass(frozen=True)
class KVRetrieval(TextRetrieval):
    """A JSON object of K pairs of random UUIDs (version 4) and a question for the value of one key.

    The task length is T, the width of the input. K is the largest number, at least 2, for which
    prompt and answer have at most T + 1 tokens. With the same `rng`, all depths have the same
    question and the same pairs; only the last pair may be missing at depths where the tokenizer
    needs more tokens. Follows Liu et al., "Lost in the Middle", arXiv 2307.03172, who use 75, 140
    and 300 pairs (official code nelson-liu/lost-in-the-middle).

    Differs from the paper: the paper counts an answer as right if the value occurs anywhere in it.
    Here the prompt ends with the opening `"` of the value, and the value must follow at once,
    character for character. So a model may leave out the quotation marks, but it may not write
    other words first.

    Args:
      tokenizer: a Hugging Face directory with `tokenizer.json`, or a `.gguf` file; default: bytes.
      depth: where the asked pair lies, 0 (first) to 1 (last); None draws its place uniformly.

    Raises:
      ValueError: a length too short for two pairs; the message gives the shortest possible one.

    Example:
      >>> task = KVRetrieval(depth=0.5)
      >>> batch = task.sample(np.random.default_rng(0), batch=4, length=1024)
      >>> task.decode(batch['targets'][0][batch['loss_mask'][0] > 0])
      'ae49ab2a-3c3a-4c23-8b95-d61711ec4ae0'
    """

    tokenizer: str | None = None
    depth: Share | None = None

    fewest: ClassVar[int] = 2

    def example(self, rng):
        return int(rng.integers(2**63))  # a seed, since the number of pairs is not known yet

    def places(self, units):
        return units

    def text(self, example, units, place):
        asked, *pairs = _pairs(example, units)
        pairs.insert(place, asked)
        lines = ',\n '.join(f'"{key}": "{value}"' for key, value in pairs)
        return PROMPT.format(json='{' + lines + '}', key=asked[0]) + OPENING, asked[1]


def _pairs(seed, count):
    """The first `count` pairs of an endless random list, which depends on the seed alone."""
    stream = np.random.default_rng(seed).bytes(32 * count)
    ids = [str(uuid.UUID(bytes=stream[i : i + 16], version=4)) for i in range(0, len(stream), 16)]
    return list(zip(ids[::2], ids[1::2]))

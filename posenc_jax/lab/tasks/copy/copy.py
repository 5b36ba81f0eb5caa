"""Copy a string of symbols: `$61916=61916$`."""

import dataclasses

from posenc_jax.lab.tasks.copy.transduction import Transduction
from posenc_jax.lab.tasks.coupling import coupled_copy_ids
from posenc_jax.protocol.registry import register


@register('copy', kind='task')
@dataclasses.dataclass(frozen=True)
class Copy(Transduction):
    """Copying; the task length counts the symbols to copy. Loss on the copy and the closing `$`.

    Follows Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in
    Transformers", arXiv 2305.19466 (their multi-symbol copy has 100 symbols and a prompt in words),
    in the layout of Cho et al., arXiv 2405.20671.

    Args:
      symbols: how many different symbols there are.
      ids: position ids that the task supplies: 'none', 'plain' or 'coupled'.

    Example:
      >>> import numpy as np
      >>> task = Copy(symbols=10, ids='coupled')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=4)
      >>> task.decode(batch['tokens'][0]), batch['positions'][0].tolist()
      ('$8652=8652', [0, 2, 3, 4, 5, 1, 2, 3, 4, 5])
    """

    coupled = staticmethod(coupled_copy_ids)

    def answer(self, x, count):
        return x

"""What is counted in a batch of points, and the numbers of a validation that follow from sums."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from posenc_jax.lab.model.field import FieldConfig
from posenc_jax.lab.model.losses import psnr, wrong_bits

# Name of a number of a validation -> the sums that it is the ratio of.
RATIOS = {
    'loss': ('loss', 'targets'),
    'accuracy': ('correct', 'targets'),
    'exact': ('solved', 'rows'),
    'bit_errors': ('wrong_bits', 'bits'),
}


def field_sums(
    cfg: FieldConfig,
    losses: Float[Array, ' B'],
    outputs: Float[Array, 'B O'],
    targets: Shaped[Array, 'B *O'],
    scored: Bool[Array, ' B'],
) -> dict[str, Float[Array, '']]:
    """Sums over the scored points.

    Args:
      cfg: what the outputs are.
      losses: of the points.
      outputs: values, logits of bits, or logits of classes.
      targets: see `FieldTask`.
      scored: which points count.

    Returns:
      `loss` and `targets` (the number of points); for classes the number of `correct` ones, for
      values their `squared_error`, and where whole numbers are stored, `bits` and `wrong_bits`.

    Example:
      >>> cfg = FieldConfig(components=1, output_size=1, predicts='bits', bits=8)
      >>> one = jnp.ones((3, 1))
      >>> sums = field_sums(cfg, one[:, 0], one, jnp.array([[1.0], [0.0], [0.0]]), one[:, 0] > 0)
      >>> float(sums['wrong_bits']), float(sums['bits'])
      (2.0, 3.0)
    """
    total = lambda a: jnp.where(scored, a, 0).sum(dtype=jnp.float32)
    sums = {'loss': total(losses), 'targets': scored.sum(dtype=jnp.float32)}
    if cfg.predicts == 'class':
        return sums | {'correct': total(jnp.argmax(outputs, axis=-1) == targets)}
    if cfg.predicts == 'value':
        sums['squared_error'] = sums['loss']
    if cfg.bits:
        whole = cfg.bits if cfg.predicts == 'value' else 0
        wrong = wrong_bits(outputs, targets, whole)
        each = outputs.shape[-1] * (whole or 1)
        sums |= {'wrong_bits': total(wrong.sum(-1)), 'bits': each * sums['targets']}
    return sums


def means(totals: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a validation from its sums.

    Example:
      >>> means({'loss': 3.0, 'targets': 2.0, 'correct': 1.0})
      {'loss': 1.5, 'accuracy': 0.5}
    """
    found = {
        name: totals[top] / totals[bottom]
        for name, (top, bottom) in RATIOS.items()
        if top in totals
    }
    if totals.get('squared_error'):  # JSON has no infinity
        found['psnr'] = psnr(totals['squared_error'] / totals['targets'])
    return found

"""Perplexity at several context lengths, by protocols that differ in which tokens are scored and in
how much context they have.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.config.protocols import CHOICES, check_stride
from posenc_jax.lab.evaluate.language import evaluate_language
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.files import disk
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register

_AT_ONCE = 2**14  # tokens that are read at a time


@register(
    'lm_eval',
    kind='analysis',
    card=analysis_card(
        'perplexity at longer lengths',
        'lm_eval(model, stream, lengths=(64, 128))',
        'You want the perplexity of a model at lengths beyond its trained one.',
    ),
)
def lm_eval(
    model: nnx.Module,
    stream: Int[np.ndarray, ' N'],
    lengths: Sequence[int],
    protocols: Sequence[str] = CHOICES,
    *,
    tokens: Size = 4096,
    stride: int | None = None,
    buckets: int = 8,
    bytes_of: Int[np.ndarray, ' V'] | None = None,
) -> list[Measurement]:
    """Measures the perplexity of a language model on a text, for each protocol and length L.

    `ppl = exp(sum NLL / scored tokens)`, `bits per byte = sum NLL / (ln 2 * bytes)`, by protocol:

    - `nonoverlapping`: windows of L tokens, one after the other. All their targets are scored, the
      first of them with one token of context.
    - `within_blocks`: blocks of L tokens, whose first token is not scored.
    - `sliding`: windows that start `stride` tokens apart. Each scores the targets that no earlier
      one has scored; with a stride of 1 these have L tokens of context.
    - `same_tokens`: windows of all lengths end at the same places, and their last `stride` targets
      are scored. This alone shows directly whether a longer context helps.
    - `per_position`: the loss by position in windows of the longest length.

    The first two charge short windows for tokens with little context at their beginning (the early
    token curse). The loss is in nats, and the 95 % interval takes windows as independent samples.
    `eval.py` measures the same of a run, with `--config.eval.protocols`.

    Differs from the paper: it has `nonoverlapping` and `sliding` with a stride of 1; the other
    protocols and the intervals are ours.

    Args:
      model: a decoder, with `hidden(tokens, tok, key=)` and `logits(hidden)`.
      stream: token ids of the text.
      lengths: context lengths, in tokens.
      protocols: names of protocols.
      tokens: the most targets that are scored; `sliding` and `same_tokens` score fewer, so that
        they read at most four times as many tokens.
      stride: see above; a quarter of the shortest length, at least 1, unless it is given.
      buckets: how many buckets of positions are reported.
      bytes_of: how many bytes each token id stands for; None leaves bits per byte out.

    Returns:
      One measurement for each protocol and length, and one for each bucket of positions.

    Raises:
      SpecError: an unknown protocol.
      ValueError: no length; the text is too short for the longest one; a stride below 1 or above
        the shortest length; a loss that is not finite.

    Reference: Press, Smith, Lewis, arXiv 2108.12409.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model, text = tiny_model('alibi()', width=16), np.arange(40) % 7
      >>> (found,) = lm_eval(model, text, lengths=(8,), protocols=('within_blocks',))
      >>> found.protocol, found.length, found.tokens
      ('within_blocks', 8, 35)
    """
    if not lengths:
        raise ValueError('lm_eval needs context lengths, e.g. lengths=(64, 128), got none')
    if stride is not None:
        check_stride(stride, min(lengths))
    return evaluate_language(
        scorer(model),
        stream,
        tuple(lengths),
        tuple(protocols),
        tokens=tokens,
        rows=lambda length: max(1, _AT_ONCE // length),
        stride=max(1, min(lengths) // 4) if stride is None else stride,
        buckets=buckets,
        bytes_of=bytes_of,
    )


def lm_eval_plot(
    found: Sequence[Measurement], path: pathlib.Path, train_length: int | None = None
) -> pathlib.Path:
    """Draws perplexity against the context length, a line for each protocol, and beside it the
    perplexity by position, if that was measured.

    Args:
      found: what `lm_eval` returned.
      path: the file to write.
      train_length: the trained length, which a dashed line marks; None for no line.

    Returns:
      The path.

    Raises:
      ValueError: nothing was measured.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[Measurement]] = {}
    for one in found:
        lines.setdefault(one.protocol, []).append(one)
    if not lines:
        raise ValueError('there is nothing to draw: no measurement was given')
    positions = lines.pop('per_position', [])
    figure = Figure(figsize=(10 if positions and lines else 5.5, 4), layout='constrained')
    panels = list(figure.subplots(1, bool(lines) + bool(positions), squeeze=False)[0])
    if lines:
        axis = panels[0]
        for name, some in lines.items():
            _draw(axis, [one.length for one in some], some, name.replace('_', ' '))
        axis.set(xlabel='context length in tokens', ylabel='perplexity')
        axis.legend(fontsize=8, frameon=False)
    if positions:
        axis = panels[-1]
        middle = [((m.position_low + 1) * m.position_high) ** 0.5 for m in positions]
        _draw(axis, middle, positions, 'per position')
        axis.set(xlabel=f'position in windows of {positions[0].length}', ylabel='perplexity')
    for axis in panels:
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
        axis.spines[['top', 'right']].set_visible(False)
        if train_length is not None:
            axis.axvline(train_length, color='0.4', linestyle='--', linewidth=1)
    disk.save_figure(figure, path, dpi=120)
    return path


def _draw(axis, x, some, label):
    around = [[np.nan if v is None else v for v in (m.low, m.high)] for m in some]
    (line,) = axis.plot(x, [m.value for m in some], marker='o', markersize=4, label=label)
    axis.fill_between(x, *np.transpose(around), color=line.get_color(), alpha=0.15, linewidth=0)

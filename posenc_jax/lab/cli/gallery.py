"""Pictures of how the logits of an encoding depend on distance.

    python -m posenc_jax.lab.cli.gallery SPEC... --out=DIR
        [--train_len=64] [--times=8] [--heads=8] [--head_dim=64]

Each encoding string gives one picture, as PNG and SVG. Its three panels show the logits of equal
tokens against their distance, with a line for each head; the same logits as a matrix of queries and
keys; and the logits of the last token in a text of --times the trained length. Trained parameters
have their initial values.
"""

import pathlib
import re
import sys

import numpy as np

from posenc_jax.base import interrupts
from posenc_jax.base.memory import device_memory, readable
from posenc_jax.base.programs import program
from posenc_jax.lab.cli.equal_tokens import Probe, by_distance, equal_token_logits
from posenc_jax.lab.files import disk
from posenc_jax.lab.files.command import Parser, in_line
from posenc_jax.protocol.encoding import Encoding


def draw(
    spec: str, directory: str | pathlib.Path, probe: Probe = Probe(), *, times: int = 8
) -> list[pathlib.Path]:
    """Writes the picture of one encoding as PNG and SVG and returns their paths; needs matplotlib.

    Args:
      spec: encoding string; `stem_of` makes the file names of it.
      directory: where the files go.
      probe: sizes of the model.
      times: length of the last panel, in trained lengths, at least 2.

    Raises:
      ValueError: the string is wrong, or there is nothing to draw within the trained length.
    """
    if times < 2:
        raise ValueError(
            '--times, the length of the last panel in trained lengths, must be at least 2, got '
            f'{times}'
        )
    encoding, directory = probe.make(spec), pathlib.Path(directory)
    longest = times * probe.train_len
    # Bytes of logits, queries, keys and values.
    needed = 4 * probe.heads * (probe.train_len**2 + longest * (1 + 3 * probe.head_dim))
    if needed > (limit := device_memory()):
        raise ValueError(
            f'{longest} tokens, and all pairs of {probe.train_len}, would take '
            f'{readable(needed)}, the device has {readable(limit)}; '
            'make --train_len, --times, --heads or --head_dim smaller'
        )
    within = by_distance(encoding, probe.train_len, probe)
    matrix = equal_token_logits(encoding, probe.train_len, probe)
    try:
        beyond = by_distance(encoding, times * probe.train_len, probe)
    except ValueError as error:
        beyond = str(error)
    figure, (left, middle, right) = new_figure((12.0, 3.4), 3)
    _lines(left, within, 0)
    left.set(xlabel='distance', ylabel='logit of equal tokens')
    left.set_title(f'within the trained {probe.train_len}', fontsize=9)
    shown = middle.imshow(matrix[0], cmap='viridis', interpolation='nearest')
    middle.set(xlabel='key', ylabel='query')
    middle.set_title('head 1' if len(_different(within)) > 1 else 'every head', fontsize=9)
    figure.colorbar(shown, ax=middle, shrink=0.8)
    if isinstance(beyond, str):
        lines = re.sub('(.{30,40}) ', '\\1\n', beyond)
        right.text(0.5, 0.5, lines, ha='center', va='center', fontsize=8, transform=right.transAxes)
        right.set_axis_off()
    else:
        _lines(right, beyond, 1)
        right.axvline(probe.train_len, color='0.4', linestyle='--', linewidth=1)
        right.set(xlabel='distance', xscale='log')
    right.set_title(f'the last of {times} x {probe.train_len} tokens', fontsize=9)
    figure.suptitle(spec, fontsize=10)
    figure.legend(
        *left.get_legend_handles_labels(), loc='outside right center', frameon=False, fontsize=7
    )
    paths = [directory / f'{stem_of(spec)}.{ending}' for ending in ('png', 'svg')]
    for path in paths:
        disk.save_figure(figure, path, dpi=160)
    return paths


def stem_of(spec: str) -> str:
    """The file name of the pictures of an encoding, without the ending.

    Example:
      >>> stem_of('rope(freqs=yarn(factor=4.0)) | alibi()')
      'rope_freqs=yarn_factor=4.0_alibi'
    """
    return re.sub(r'[^A-Za-z0-9.=-]+', '_', spec).strip('_')


def thumbnail(
    encoding: Encoding, path: str | pathlib.Path, probe: Probe = Probe(), *, times: int = 4
) -> pathlib.Path:
    """Writes the small picture of the catalogue: logits against distance, up to `times` trained
    lengths, with a dashed line at the trained length. Needs matplotlib.

    An encoding without positions beyond the trained length is drawn within it.
    """
    try:
        values = by_distance(encoding, times * probe.train_len, probe)
    except ValueError:
        values = by_distance(encoding, probe.train_len, probe)
    figure, (axis,) = new_figure((1.6, 0.9), 1)
    _lines(axis, values, 0)
    axis.axvline(probe.train_len, color='0.4', linestyle='--', linewidth=0.6)
    axis.set(xticks=[], yticks=[])
    disk.save_figure(figure, path, dpi=100)
    return pathlib.Path(path)


def new_figure(size: tuple[float, float], panels: int):
    """A figure without a window, and its panels, which lie side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _different(values):
    """Indices of the heads to draw; only the first if all heads are alike."""
    alike = np.allclose(values, values[:1], rtol=0, atol=1e-6, equal_nan=True)
    return [0] if alike else list(range(len(values)))


def _lines(axis, values, start):
    from matplotlib import colormaps

    heads = _different(values)
    for head in heads:
        colour = colormaps['viridis'](0.9 * head / max(len(heads) - 1, 1))
        label = f'head {head + 1}' if len(heads) > 1 else 'every head'
        distance = np.arange(start, values.shape[1])
        axis.plot(distance, values[head, start:], color=colour, linewidth=1, label=label)
    if not np.nanmax(np.abs(values)) > 1e-6:
        axis.set_ylim(-1, 1)  # otherwise rounding noise would fill the panel


def main(argv: list[str] | None = None) -> int:
    parser = Parser(program('posenc_jax.lab.cli.gallery'), description=__doc__)
    specs = "encoding string, e.g. 'rope() | alibi()'"
    parser.add_argument('specs', nargs='+', metavar='SPEC', help=specs)
    usual = pathlib.Path('runs', 'gallery')
    parser.add_argument('--out', type=pathlib.Path, default=usual, metavar='DIR')
    parser.add_argument('--train_len', type=int, default=64, metavar='L')
    times = 'length of the last panel, in trained lengths'
    parser.add_argument('--times', type=int, default=8, metavar='N', help=times)
    parser.add_argument('--heads', type=int, default=8)
    parser.add_argument('--head_dim', type=int, default=64)
    parser.add_imports()
    known = parser.parse_args(argv)
    try:
        for name in ('train_len', 'heads', 'head_dim'):
            if getattr(known, name) < 1:
                raise ValueError(f'--{name} must be at least 1, got {getattr(known, name)}')
        probe = Probe(known.heads, known.head_dim, known.train_len)
        named = {}
        for spec in known.specs:
            probe.make(spec)  # raises for a wrong string before anything is drawn
            other = named.setdefault(stem_of(spec), spec)
            if other != spec:
                raise ValueError(
                    f'{other!r} and {spec!r} would both write {stem_of(spec)}.*; draw them into '
                    'two folders'
                )
        for spec in known.specs:
            for path in draw(spec, known.out, probe, times=known.times):
                print(path)
    except (ValueError, ImportError, OSError) as error:
        print(f'{program("posenc_jax.lab.cli.gallery")}: {in_line(error)}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.lab.cli.gallery', main))

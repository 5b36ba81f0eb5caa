"""The table of measured costs in the catalogue, made from `posenc_jax/costs.csv`."""

from posenc_jax.language import choosing
from posenc_jax.language.catalog import markdown_table

COST_COLUMNS = ('encoding', 'setting', 'train step', 'decoding', 'MiB')
EXPLAINED = """\
The time of a train step and of decoding, over that of the encoding which is named, and the
temporary memory of a train step. [performance.md](performance.md#what-an-encoding-costs) describes
the settings of text, and [what follows it](performance.md#what-the-encodings-of-space-cost) the
others.
"""


def costs_markdown() -> str:
    """All rows of `costs.csv` as a Markdown table, by setting and time of a train step."""
    rows = sorted(choosing.costs().values(), key=lambda row: (row['setting'], float(row['step'])))
    cells = []
    for row in rows:
        spec = row['spec'].replace('|', '\\|')
        cells.append((f'`{spec}`', row['setting'], *choosing.cost_cells(row['key'])))
    return f'## Costs\n\n{EXPLAINED}\n{markdown_table(COST_COLUMNS, cells)}\n'

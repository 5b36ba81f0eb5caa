"""The table of measured costs in the catalogue, made from `posenc_jax/costs.csv`."""

from posenc_jax.language.catalog import markdown_table
from posenc_jax.language.measured import cells, costs

COST_COLUMNS = ('encoding', 'setting', 'train step', 'decoding', 'MiB')
EXPLAINED = """\
The time of a train step and of decoding, over that of the encoding which is named, and the
temporary memory of a train step. [performance.md](performance.md#what-an-encoding-costs) describes
the settings of text, and [what follows it](performance.md#what-the-encodings-of-space-cost) the
others.
"""


def costs_markdown() -> str:
    """All rows of `costs.csv` as a Markdown table, by setting and time of a train step."""
    rows = sorted(costs(), key=lambda row: (row['setting'], float(row['step'])))
    spec = lambda row: row['spec'].replace('|', '\\|')
    table = [(f'`{spec(row)}`', row['setting'], *cells(row)) for row in rows]
    return f'## Costs\n\n{EXPLAINED}\n{markdown_table(COST_COLUMNS, table)}\n'

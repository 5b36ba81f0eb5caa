"""docs/headline.md: well-known results, as papers report them and as the claims measure them."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evidence.claims import curve_pictures, ledger, page
from evidence.claims.curve_pictures import Panel
from evidence.claims.pictures import captioned
from posenc_jax.language.choosing import anchor

PATH = pathlib.Path(__file__).with_suffix('.toml')
HEADER = """# Well-known results, measured here

Each section says what a paper reports, how the setting here differs, and what was measured. The
models here are small and were trained for minutes, so a verdict is about this setting.
[claims.md](claims.md) explains the verdicts and the units of the effects, and has all claims.
`python -m evidence.claims` writes this page from the records, and `python -m evidence.claims ID`
measures a claim again. The last column has the minutes that this takes on two CPU cores. In a
picture that this command draws, a line goes through the means of the seeds, and a dash stands for
each seed. Lines of many points have a band from the smallest to the largest seed instead. The
points of several lines at one place stand beside each other.
"""
COLUMNS = ('claim', 'method', 'verdict', 'effect', 'compared here', 'minutes')


@dataclasses.dataclass(frozen=True)
class Row:
    """A result and its claims.

    Attributes:
      title: what is shown, or not.
      paper: what the paper reports, in its own setting.
      claims: ids in the ledger.
      differs: in what the setting here is another one.
      page: the page that has more numbers of this result.
      picture: of curves, below docs/; '' for none.
      panels: what `draw` draws there; () where another command made the picture.
      accelerator: a command that runs a setting near the paper's on one accelerator; '' where the
        claims have that setting.
    """

    title: str
    paper: str
    claims: Sequence[str]
    differs: str
    page: str
    picture: str = ''
    panels: Sequence[Panel] = ()
    accelerator: str = ''


def _row(panels: Sequence[Mapping[str, Any]] = (), **fields: Any) -> Row:
    return Row(**fields, panels=tuple(Panel(**panel) for panel in panels))


ROWS = tuple(_row(**row) for row in tomllib.loads(PATH.read_text(encoding='utf-8'))['row'])


def draw(docs: pathlib.Path, claims: page.Claims, records: page.Records) -> None:
    """Draws the pictures that `markdown` shows, from the numbers that the repository keeps."""
    known = page.measured(claims, records)
    for row in ROWS:
        if row.panels and _has_picture(row, known):
            curve_pictures.draw(docs / row.picture, row.panels, records)


def _has_picture(row: Row, known: Collection[str]) -> bool:
    """Whether there is a picture if these claims have current records."""
    return bool(row.picture) and all(panel.claim in known for panel in row.panels)


def markdown(claims: page.Claims, records: page.Records) -> str:
    """The whole page."""
    verdicts, costs = page.measured(claims, records), ledger.minutes(claims.values(), records)
    first, sections = [], []
    for row in ROWS:
        known = [claims[name] for name in row.claims if name in claims]
        words = ', '.join(f'{c.id} {verdicts.get(c.id, "not measured")}' for c in known)
        first.append([f'[{row.title}](#{anchor(row.title)})', words])
        cells = []
        for claim in known:
            how, verdict = claim.how, verdicts.get(claim.id)
            effect = page.effect_text(how, records[claim.id]) if how and verdict else ''
            about = [claim.id, f'`{claim.key}`', f'**{verdict or "not measured"}**', effect]
            minutes = costs[ledger.run_command(how).name] if how else claim.minutes
            cells.append([*about, claim.test, f'{minutes:.3g}'])
        of_page = pathlib.Path(row.page).name
        sections += [
            f'## {row.title}',
            f'**The paper.** {row.paper}',
            f'**Here.** {row.differs} More numbers are in [{of_page}]({row.page}).',
            page.table(COLUMNS, cells),
            f'![{row.title}]({row.picture})' if _has_picture(row, verdicts) else '',
            _on_accelerator(row) if row.accelerator else '',
        ]
    table = page.table(('result', 'verdicts of its claims'), first)
    return captioned('\n\n'.join(part.strip() for part in (HEADER, table, *sections) if part))


def _on_accelerator(row: Row) -> str:
    """The command, one field in a line."""
    lines = row.accelerator.replace(' --', ' \\\n    --')
    return (
        'On one accelerator, nearer to the paper (not run here). The command has one side of the '
        'comparison; run it again with each other encoding or method, task and `--config.seed`:'
        f'\n\n```bash\n{lines}\n```'
    )

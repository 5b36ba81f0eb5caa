"""Writes docs/catalog.md, its pictures and docs/functions.md, or checks them.

    python -m posenc_jax.lab.catalogue [--check] [--redraw]

Only missing pictures are drawn, because pictures differ between versions of the plotting library.
`--redraw` draws all of them. A package that pip installed writes to runs/docs/ in the working
directory.
"""

import difflib
import sys
from pathlib import Path

from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab.catalogue.columns import MORE, by_family
from posenc_jax.lab.catalogue.costs import costs_markdown
from posenc_jax.lab.catalogue.functions import functions_markdown
from posenc_jax.lab.catalogue.pictures import draw
from posenc_jax.lab.catalogue.tasks import tasks_markdown
from posenc_jax.lab.files import disk, repository
from posenc_jax.lab.files.command import Parser
from posenc_jax.language.catalog import PICTURED, catalog_markdown, picture_name, pictured
from posenc_jax.protocol.registry import entries

PICTURES = 'catalog'
HEADER = """# Catalogue

`python -m posenc_jax.lab.catalogue` writes this page from the Cards of the registered methods; do
not edit it. The tables list the encodings first, then frequency rules, extensions, encoders of
coordinates and of graphs, fields, mixers, caches, conversions and analyses. Encodings are sorted by
family. Within a family, and in the other tables, methods are in the order in which a layer calls
their first doors. The last two tables have the tasks and the measured costs. On the documentation
site, a click on the head of a column sorts a table by it.

| column | what it says |
| --- | --- |
| key | the name in spec strings and in the registry, also of the method's file and test file |
| picture | the logits of the example by distance, or another small picture, see below |
| name | the name in the paper |
| door | the doors that the method opens ([architecture.md](architecture.md) explains them) |
| equation | one line in the symbols of the paper |
| promises | properties of the method, which `tests/contract_test.py` checks, see below |
| example | a valid spec string, or a call in Python |
| reference | the paper, or another source if there is no paper |
| family | what an encoding does; [functions.md](functions.md) has the same families |
| cost | time of a train step, and of decoding, over that of another encoding ([Costs](#costs)) |
| measured | the verdicts of [claims.md](claims.md) about the method, with links to their rows |
| use when | needs for which [choosing.md](choosing.md) names the method, or else who may try it |

**Promises.** The class `Promises` in `posenc_jax/protocol/card.py` defines them.

| promise | meaning |
| --- | --- |
| relative | Adding one constant to every position changes nothing. |
| sweep free | The order in which keys are visited does not matter. |
| blockwise | Evaluation in tiles equals dense evaluation, in memory linear in the length. |
| needs training | The method has trainable parameters. |
| fused | The pair stage is a plain scaled inner product, so a fused attention kernel can run it. |
| cached raw | A cache keeps the keys unencoded, and every decoding step encodes them again. |
| cached evolving | A cache keeps encoded keys, and every new token changes them. |
| cached none | A new token changes the encoding of all other tokens, so a cache is refused. |

**Pictures.** A picture shows the example with the initial values of its parameters. Those of
encodings, frequency rules and extensions have curves, the logits of equal tokens against their
distance, one curve for each head (the darkest is that of the first head). The dashed line marks the
trained length; the curves go up to four times it. The picture of an extension shows an extended
`rope()`, or an extended `alibi()`, `nope()` or `learned_absolute()` if the extension needs one of
these. `python -m posenc_jax.lab.cli.gallery SPEC...` draws a larger picture of any encoding.

The picture of an encoder of graphs shows a graph of ten nodes, once for each of the first features
that differ among them, three at most. The darkest node has the smallest value. Where there are
features of pairs alone, they are those of the pairs with the topmost node. The left half of the
picture of a field shows its values over a square with its initial weights, and the right half those
after a fit of a wave with an edge.

"""


def rendered(root: Path) -> dict[Path, str]:
    """The text of each generated file, by path."""
    methods = catalog_markdown(pictures=PICTURES, more=MORE, order=by_family)
    tables = '\n'.join((methods, tasks_markdown(), costs_markdown()))
    return {
        root / 'docs' / 'catalog.md': HEADER + tables,
        root / 'docs' / 'functions.md': functions_markdown(),
    }


def main(arguments: list[str] | None = None, root: Path = repository.WRITTEN) -> int:
    """Writes the files. With --check it writes nothing, prints how the files differ from what they
    should be, and returns 1 if any does.
    """
    parser = Parser(
        program('python -m posenc_jax.lab.catalogue'), description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--check', action='store_true', help='report what is out of date instead of writing'
    )
    parser.add_argument('--redraw', action='store_true', help='draw every picture anew')
    known = parser.parse_args(arguments)
    check, stale = known.check, 0
    for kind in PICTURED:
        for entry in entries(kind):
            path = root / 'docs' / PICTURES / picture_name(kind, entry.key)
            if not pictured(entry) or (path.exists() and not known.redraw):
                continue
            stale = 1
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(entry, path)
            print(f'{path} is missing' if check else f'wrote {path}')
    for path, wanted in rendered(root).items():
        found = path.read_text(encoding='utf-8') if path.exists() else ''
        if found == wanted:
            continue
        stale = 1
        if check:
            lines = difflib.unified_diff(
                found.splitlines(), wanted.splitlines(), str(path), 'generated', lineterm='', n=0
            )
            print('\n'.join(lines))
        else:
            disk.write(path, wanted)
            print(f'wrote {path}')
    return stale if check else 0


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.language.catalog', main))

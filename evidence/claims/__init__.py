"""The ledger of claims: what papers say of their methods, and what was measured of it here.

Command:   python -m evidence.claims [ID ...] [--budget MINUTES] [--sample SEED] [--no-pages]
           [--workdir runs/claims]
           Without arguments the command says what is measured and what is left. IDs measure these
           claims. A budget measures what is left, cheapest first, until the next claim would take
           longer than what remains of the budget. With a sample it measures claims again that have
           a record, in an order that the seed draws, as many as it has room for. Their effects are
           printed beside the record, and nothing is written outside of WORKDIR. --no-pages saves
           the minute that the pages take.
Results:   evidence/measured.json, and what is made from it: the pages docs/claims.md,
           docs/choosing.md and docs/headline.md, and posenc_jax/verdicts.csv, which `pj.choose`
           and the catalogue read. Runs lie in WORKDIR/SWEEP-DIGEST; the digest is that of all
           settings of the sweep. A run that exists is not trained again, so the command may be
           interrupted and started again. The command also writes the lines of docs/results/ that
           say what draws a picture; `pictures.toml` has them.

A file for each family of methods has the claims: the sentences of the papers, how they are
measured or would be, and the margin. `claim.py` explains the fields. `without.toml` has the
methods without a claim. The advice of docs/choosing.md is that of `pj.choose`, in
posenc_jax/choosing.toml.
"""

import pathlib

from evidence.claims.claim import Claim, read

FAMILIES = (  # in the order of the page
    'positions', 'biases', 'rotary', 'caches', 'content', 'mixers', 'space', 'analyses',
    'frontier_forgetting', 'frontier_rotary', 'frontier_lists', 'frontier_tables',
    'frontier_mrope', 'frontier_lie', 'frontier_images', 'frontier_fields',
    'frontier_graphs',
)  # fmt: skip
CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for family in FAMILIES
    for claim in read(pathlib.Path(__file__).with_name(f'{family}.toml'))
}

"""Searches the factors of `longrope` for a trained model and a target length. A search that was
stopped continues with the same command.

    python -m posenc_jax.lab.longrope_search --run=RUN_OR_CHECKPOINT --length=T [--population=64
        --iterations=40 --parents=32 --mutations=16 --crossovers=16 --probability=0.3 --documents=5
        --seed=0 --variant=free|dim_piece_mono|critical --objective=perplexity|needle
        --out=FILE.json] [--config.NAME=VALUE ...]

The run is a directory that train.py wrote, a Hugging Face directory, or a .gguf file. The search
minimises the mean perplexity of --documents windows of T tokens, which are spread evenly over the
validation split. FILE.json (default: longrope_T.json in the directory of the run, or in
runs/NAME-PLACE for a public checkpoint) is written after every iteration and holds the whole state;
FILE.json.scores holds the scores found since. A search that continues from these files ends with
the same factors as one that was never stopped. The field `spec` is the extension that was found:
give it to eval.py as --config.extend, or to configs/extend.py as --config.init.extend. Several
processes search together, as in eval.py.

A run may have factors of `longrope` already, for up to s times its original length L. The search
then continues from them (the paper's progressive extension). At T above s L it finds factors that
multiply the present ones: the field `best` holds the new factors, `spec` the products. At T up to L
it finds the list `short` and changes nothing else. --run='RUN | longrope(...)' gives a run factors.
For example, with a run BASE that was trained at length 128:

    ... --run=BASE --length=512
    python train.py --config=configs/extend.py --config.init.source=BASE \
        --config.init.extend='SPEC_512' --config.name=TUNED
    ... --run=TUNED --length=2048
    ... --run='TUNED | SPEC_2048' --length=128

--variant=critical searches the rule `longrope2` of a run with plain rotary positions, and
--objective=needle scores a genome by the perplexity of an answer that stands at the beginning of
the text:

    ... --run=BASE --length=512 --variant=critical --objective=needle --documents=10
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from posenc_jax.base import interrupts
from posenc_jax.base.programs import printable, program
from posenc_jax.lab.cluster.cluster import ERRORS, failed, leave, together
from posenc_jax.lab.config.run_parser import RunParser
from posenc_jax.lab.files import disk, paths, regular
from posenc_jax.lab.longrope_search.evolution import Sizes
from posenc_jax.lab.longrope_search.genome import VARIANTS
from posenc_jax.lab.longrope_search.search import OBJECTIVES, default_output, scores_of, search

# Where a search starts.
FIRST = {
    'yarn_ramp': 'the ramp of YaRN',
    'ones': 'factors of 1',
    'critical': 'the first critical plane',
}
OPTIONS = {
    'run': dict(required=True, metavar='DIR', help='run directory or public checkpoint'),
    'length': dict(required=True, type=int, metavar='T', help='target length in tokens'),
    **{f.name: dict(type=int, default=f.default, metavar='N') for f in dataclasses.fields(Sizes)},
    'probability': dict(
        type=float, default=0.3, metavar='P', help='probability that a sweep visits a gene'
    ),
    'documents': dict(
        type=int, default=5, metavar='N', help='windows of T tokens that score a genome'
    ),
    'seed': dict(type=int, default=0, metavar='N'),
    'variant': dict(default='free', metavar='|'.join((*VARIANTS, 'critical'))),
    'objective': dict(default='perplexity', metavar='|'.join(OBJECTIVES)),
    'out': dict(type=paths.path, metavar='FILE.json'),
}


def arguments(argv: list[str] | None) -> dict[str, Any]:
    """The arguments of `search` that a command line gives."""
    parser = RunParser(program('python -m posenc_jax.lab.longrope_search'), description=__doc__)
    parser.add_options(OPTIONS)
    known, processes, overrides = parser.read(argv)
    given = vars(known)
    try:
        sizes = Sizes(**{field.name: given.pop(field.name) for field in dataclasses.fields(Sizes)})
    except ValueError as error:
        parser.error(str(error))
    return {**given, 'processes': processes, 'sizes': sizes, 'overrides': overrides}


@contextlib.contextmanager
def _output(asked: Mapping[str, Any], first: bool) -> Iterator[pathlib.Path | None]:
    """The argument `out` of a search in this process. Several processes begin from the same state
    and score the same genomes, and those that are not the first write copies.
    """
    if jax.process_count() == 1:
        yield asked['out']
        return
    path = asked['out'] or default_output(asked['run'], asked['length'])
    with tempfile.TemporaryDirectory() as folder:
        own = path if first else pathlib.Path(folder, path.name)
        shared, copies = (path, scores_of(path)), (own, scores_of(own))
        digest = 0
        for there, copy in zip(shared, copies):
            if there.exists():
                text = regular.read_text(there)
                digest = zlib.crc32(text.encode(), digest)
                if not first:
                    disk.write(copy, text)
        found = multihost_utils.process_allgather(np.uint32(digest))  # before one of them writes
        if (found != digest).any():
            raise ValueError(
                f'the processes do not see the same {path}; choose an --out in a folder that all '
                'of them see'
            )
        yield own


def main(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    try:
        with together(*asked.pop('processes')) as first:
            with _output(asked, first) as out:
                _report(search(**{**asked, 'out': out}))
    except ERRORS as error:
        return failed('longrope search', error)
    except KeyboardInterrupt:
        print(
            f'{program("longrope search")}: stopped; the same command continues after the last '
            'finished iteration',
            file=sys.stderr,
        )
        return leave(130)
    return 0


def _report(path: pathlib.Path) -> None:
    fields = json.loads(regular.read_text(path))
    length, exact = fields['settings']['length'], fields['exact']
    first, name = next((first, name) for first, name in FIRST.items() if first in exact)
    of = ' of needles' if fields['settings'].get('objective') == 'needle' else ''
    print(
        f'perplexity{of} at {length}: {exact[first]:.4f} with {name}, {exact["perplexity"]:.4f} '
        'searched'
    )
    if 'as_it_is' in exact:  # files of older versions lack this field
        print(f'{exact["as_it_is"]:.4f} with nothing changed')
    if exact.get('as_it_is', float('inf')) < exact['perplexity']:
        print(
            f'{fields["settings"]["run"]} is better without the searched factors; a longer search '
            'may find better ones'
        )
    print(f'{path}\n{printable(fields["spec"])}')


if __name__ == '__main__':
    sys.exit(interrupts.run('longrope search', main))

"""Rotary models trained on: without positions, with some global layers, or on longer texts.

Command:   python -m evidence.experiments converted GROUP [--seeds 0 1 2] [--steps 1600]
           [--workdir DIR]
           GROUP is one of
  text      listings in windows of 64 bytes, models of 4 layers: RoPE, also with positions dropped
            for the last eighth of the batches; no positions from the start; and RoPE trained on for
            a tenth of the batches with windows of 16 in all layers, and with such windows behind a
            global layer without positions
  passkeys  keys of 3 digits in 16 to 64 tokens, models of 2 layers: RoPE, also with positions
            dropped for the last eighth of the batches, and FoPE; YaRN reads the models with RoPE
  longer    listings, models of 2 layers: windows of 64 bytes and, for the last fifth of the
            batches, of 256 with a larger base; and windows of 256 from the start, with the usual
            and with the larger base. All read as many bytes
Number:    docs/claims.md, claims FL10 to FL12, FR12 and R16
Results:   WORKDIR/comparison
Paper:     Gelberg et al. (arXiv 2512.12167): dropping positions for the last 12.5 % of the tokens
           costs nothing, and the model then retrieves from longer texts. Puvvada et al. (arXiv
           2504.08719): 2 % more tokens turn a rotary model into one of both kinds of layers. Xiong
           et al. (arXiv 2309.16039): training on long texts at the end alone is as good as from the
           start, and cheaper.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_once, train_runs

FAR = 256  # four times the trained length
LOCAL = 'rope() | window(size=16)'


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of a group.

    Attributes:
      share: of the batches of the group.
      fields: what the run has of its own.
      source: the run that it continues, if any.
      extended: extensions with which it is evaluated besides.
    """

    share: float
    fields: Mapping[str, object]
    source: str = ''
    extended: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs, each behind its source; the fields of all of them, and of their evaluation."""

    fields: Mapping[str, object]
    runs: Mapping[str, Stage]
    evaluation: Mapping[str, object]


LISTINGS = {'data.dataset': 'listings', 'train.length': 64, 'train.batch': 16, 'train.lr': 3e-3}
BYTES = {'eval.protocols': ('same_tokens',), 'eval.tokens': 65536}
ROPE, NOPE = {'encoding': 'rope()'}, {'encoding': 'nope()'}
EARLY, LATE = 0.875, 0.125
LONG = {'train.length': FAR, 'train.batch': 4}
GROUPS = {
    'text': Group(
        {**LISTINGS, 'model.layers': 4, 'model.mlp_width': 128},
        {
            'rope': Stage(1.0, ROPE),
            'nope': Stage(1.0, NOPE),
            'early': Stage(EARLY, ROPE),
            'dropped': Stage(LATE, NOPE, 'early'),
            'pattern': Stage(0.1, {'pattern': ('nope()', LOCAL, LOCAL, LOCAL)}, 'rope'),
            'windows': Stage(0.1, {'encoding': LOCAL}, 'rope'),
        },
        {**BYTES, 'eval.lengths': (64,)},
    ),
    'passkeys': Group(
        {
            'task': 'passkey(lm_weight=0.1)', 'train.length': 64, 'train.min_length': 16,
            'train.batch': 32, 'train.lr': 1e-3, 'model.layers': 2,
        },
        {
            'rope': Stage(1.0, ROPE, extended=('yarn(factor=2.0)', 'yarn(factor=4.0)')),
            'fope': Stage(1.0, {'encoding': 'fope()'}),
            'early': Stage(EARLY, ROPE),
            'dropped': Stage(LATE, NOPE, 'early'),
        },
        {'eval.lengths': (64, 128, FAR), 'eval.samples': 256},
    ),
    'longer': Group(
        {**LISTINGS, 'model.layers': 2},
        {
            'short': Stage(0.8, ROPE, extended=('abf()',)),
            'continued': Stage(0.2, {**LONG, 'init.extend': 'abf()'}, 'short'),
            'long': Stage(1.0, {**ROPE, **LONG}),
            'long_abf': Stage(1.0, {'encoding': 'rope(base=500000.0)', **LONG}),
        },
        {**BYTES, 'eval.lengths': (64, FAR)},
    ),
}  # fmt: skip
ALL = {
    'model.width': 64, 'model.heads': 4, 'train.warmup': 100, 'train.eval_every': 400,
    'train.save_every': 100000, 'mesh.cpu_devices': 1,
}  # fmt: skip
MODEL = 'model.'  # fields that a run takes from its source


def runs(options: argparse.Namespace) -> dict[tuple[str, int], Run]:
    """The runs of a group, each behind its source."""
    group, found = GROUPS[options.group], {}
    for seed in options.seeds:
        for name, stage in group.runs.items():
            steps = round(stage.share * options.steps)
            fields = {**ALL, **group.fields, **stage.fields, 'seed': seed, 'train.steps': steps}
            if stage.source:
                fields = {own: fields[own] for own in fields if not own.startswith(MODEL)}
                fields['init.source'] = str(options.workdir / f'{stage.source}_{seed}')
                fields['train.warmup'] = steps // 10
            directory = options.workdir / f'{name}_{seed}'
            found[name, seed] = Run(directory, 'configs/default.py', fields)
    return found


def run(options: argparse.Namespace) -> None:
    """Trains the runs of a group, continues some of them, and evaluates all of them."""
    group, trained = GROUPS[options.group], train_runs(runs(options))
    evaluated = [
        f'{directory} | {extension}' if extension else directory
        for (name, _), directory in trained.items()
        for extension in ('', *group.runs[name].extended)
    ]
    evaluate_once(evaluated, options.workdir / 'comparison', group.evaluation)


PROGRAM = Program(__name__, __doc__, run, group=GROUPS, options={'steps': 1600})

"""Models of text, trained in windows of 128 bytes and tuned a little to read four times as much.

Command:   python -m evidence.experiments continued GROUP [--seeds 0 1 2] [--steps 2000]
           [--tuned 100] [--workdir DIR]
           GROUP is one of
  temperatures  no positions; one temperature for all heads, and a temperature for each head that is
                trained in windows of 512 while all else is frozen
  parts         RoPE; tuned on rows of 128 bytes with `cream_text` and PI, on rows of 128 bytes in
                segments from 512 (`segmented_text`), and on rows of 512 bytes with PI
Measured:  nats of the same bytes in windows of 128 and 512. Models have 4 layers of width 96 and
           read 2000 batches of 8 windows by default; tuning takes batches of as many
           bytes or twice as many.
Number:    docs/claims.md, claims A18 and A20 (with --tuned 400) and B21 (with
           --steps 8000)
Paper:     Wang et al. (arXiv 2404.12224): trained temperatures expand the context of models without
           positions substantially. Wu et al. (arXiv 2406.07138): tuning at the old length extends
           the context to the target. Karypis et al. (arXiv 2310.14633): inputs of four times the
           length at lower perplexity with the memory of the old length.
"""

import argparse
import dataclasses
from collections.abc import Mapping

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_once, train_runs

NEAR, FAR = 128, 512


@dataclasses.dataclass(frozen=True)
class Group:
    """What is continued, and how.

    Attributes:
      encoding: of the model.
      extended: an extension of the model as it is.
      config: config file of the tuning.
      tuned: name -> fields of a tuning.
    """

    encoding: str
    extended: str
    config: str
    tuned: Mapping[str, Mapping[str, object]]


GROUPS = {
    'temperatures': Group(
        'nope()',
        'nope_temperature(temperature=1.2)',
        'configs/temperature.py',
        {'heads': {'init.extend': 'nope_temperature(1.2, per_head=True)'}},
    ),
    'parts': Group(
        'rope()',
        'pi(factor=4.0)',
        'configs/segmented.py',
        {
            'cream': {
                'task': f'cream_text(factor={FAR // NEAR}, source_len={FAR})',
                'init.extend': 'pi(factor=4.0)',
            },
            'segments': {'task': f'segmented_text(source_len={FAR}, segment_len=16)'},
            'long': {
                'task': 'language()', 'train.length': FAR, 'train.batch': 4,
                'init.extend': 'pi(factor=4.0)',
            },
        },
    ),
}  # fmt: skip
FIELDS = {
    'model.width': 96, 'model.heads': 3, 'train.length': NEAR, 'train.batch': 8, 'train.lr': 4e-3,
}  # fmt: skip
ALL = {'train.save_every': 100000, 'train.eval_every': 400, 'mesh.cpu_devices': 1}
EVALUATION = {
    'eval.lengths': (NEAR, FAR), 'eval.protocols': ('same_tokens',), 'eval.tokens': 65536,
}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Trains a model, continues it in every way of the group, and evaluates everything."""
    group, workdir, runs = GROUPS[options.group], options.workdir, {}
    for seed in options.seeds:
        first = workdir / f'first_{seed}'
        fields = {**FIELDS, **ALL, 'encoding': group.encoding, 'train.steps': options.steps}
        fields['train.warmup'] = options.steps // 25
        runs['first', seed] = Run(first, 'configs/quickstart.py', {**fields, 'seed': seed})
        again = {'train.steps': options.tuned, 'train.warmup': options.tuned // 10, 'seed': seed}
        for name, own in group.tuned.items():
            fields = {**ALL, 'init.source': str(first), **again, **own}
            runs[name, seed] = Run(workdir / f'{name}_{seed}', group.config, fields)
    evaluated = []
    for (name, _), directory in train_runs(runs).items():
        more = [f'{directory} | {group.extended}'] if name == 'first' else []
        evaluated += [directory, *more]
    evaluate_once(evaluated, workdir / 'comparison', EVALUATION)


PROGRAM = Program(__name__, __doc__, run, group=GROUPS, options={'steps': 2000, 'tuned': 100})

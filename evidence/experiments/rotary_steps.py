"""Rules for rotary frequencies after 1000 steps of tuning, at 4 and 16 times the trained length.

Time:      12 to 20 minutes on one idle core for each seed
Measured:  models of two layers of width 64 that are trained in windows of 128 bytes of listings,
           for 1200 batches of 16. For each factor PI, the NTK-aware rule and YaRN are tuned for
           1000 steps of 2048 bytes, in windows of the factor times 128, as PI is in its paper; with
           factor 4 plain RoPE besides. All models of a folder are scored on the same 131,072 bytes,
           in windows of 128 bytes and of the factor times 128, the model before the tuning as it is
           and with each rule: WORKDIR/factor_4 and WORKDIR/factor_16, where a model with windows of
           attention (`lm_infinite`) is read too, which cannot use far context. WORKDIR/tuning has
           the validation loss every 10 steps.
Number:    docs/claims.md, claims R4, R6, R7 and R9
Paper:     Chen et al. (arXiv 2306.15595): PI reaches 16 times the length within 1000 steps. Peng et
           al. (arXiv 2309.00071): YaRN needs 2.5 times fewer steps, and surpasses earlier rules.
"""

import argparse
import pathlib

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_once, train_runs
from evidence.experiments.tables import report
from evidence.experiments.text_extension import curve

LENGTH, FACTORS, BYTES = 128, (4, 16), 2048  # bytes of a step
RULES = {
    'pi': 'pi(factor={}.0)',
    'ntk_aware': 'ntk_aware(factor={}.0)',
    'yarn': 'yarn(factor={}.0)',
}
LISTINGS = {'data.dataset': 'listings', 'mesh.cpu_devices': 1, 'train.save_every': 500}
WINDOW = 'lm_infinite()'


def extensions(factor: int) -> dict[str, str]:
    """Name of a tuned run -> its extension."""
    own = {name: rule.format(factor) for name, rule in RULES.items()}
    return own if factor > min(FACTORS) else {'rope': '', **own}


def base(workdir: pathlib.Path, seed: int, steps: int) -> Run:
    """The run that is extended."""
    fields = {
        'encoding': 'rope()', 'model.layers': 2, 'model.width': 64, 'model.heads': 4,
        'train.length': LENGTH, 'train.batch': 16, 'train.steps': steps, 'train.lr': 3e-3,
        'train.warmup': 100, 'train.eval_every': 400, 'seed': seed,
    }  # fmt: skip
    return Run(workdir / f'base_{seed}', 'configs/default.py', LISTINGS | fields)


def tuned(workdir: pathlib.Path, name: str, factor: int, seed: int, steps: int) -> Run:
    """A run that continues the base."""
    length = LENGTH * factor
    fields = {
        'train.length': length, 'train.batch': BYTES // length, 'train.steps': steps,
        'train.eval_every': 10, 'train.eval_batches': 2, 'seed': seed,
        'init.source': str(workdir / f'base_{seed}'), 'init.extend': extensions(factor)[name],
    }  # fmt: skip
    return Run(workdir / f'{name}_{factor}_{seed}', 'configs/extend.py', LISTINGS | fields)


def run(options: argparse.Namespace) -> None:
    """Trains the base, tunes it with every rule for each factor, and evaluates everything."""
    workdir, seeds = options.workdir, options.seeds
    bases = train_runs({seed: base(workdir, seed, options.steps) for seed in seeds})
    trained = train_runs(
        {
            (name, factor, seed): tuned(workdir, name, factor, seed, options.tune_steps)
            for seed in seeds
            for factor in FACTORS
            for name in extensions(factor)
        }
    )
    rows = [
        (f'factor {factor}', name, step, seed, loss)
        for (name, factor, seed), directory in trained.items()
        for step, loss in curve(directory)
    ]
    report(rows, workdir / 'tuning', title='Tuning', x='step', value='nats a byte')
    for factor in FACTORS:
        untuned = [rule.format(factor) for rule in RULES.values()]
        more = [WINDOW] if factor == max(FACTORS) else []
        runs = [
            f'{directory} | {spec}' if spec else directory
            for directory in bases.values()
            for spec in ('', *untuned, *more)
        ]
        runs += [own for (_, of, _), own in trained.items() if of == factor]
        fields = {
            'eval.lengths': (LENGTH, LENGTH * factor), 'eval.protocols': ('same_tokens',),
            'eval.tokens': 131072,
        }  # fmt: skip
        evaluate_once(runs, workdir / f'factor_{factor}', fields)


PROGRAM = Program(
    __name__,
    __doc__,
    run,
    options={'steps': (1200, 'of the base runs'), 'tune_steps': (1000, 'of the other runs')},
)

"""Rules for rotary frequencies at 4, 8 and 16 times the trained length, as they are and tuned.

Time:      about 65 minutes on one idle core for each seed, 10 of them for the base run
Measured:  the base of `evidence.experiments.text_extension`, trained in windows of 256 bytes of
           Python source. For each factor, PI, the NTK-aware rule, YaRN and LongRoPE are tuned for
           200 steps of 4096 bytes, in windows of the factor times 256; with factor 4 plain RoPE, a
           larger base (ABF) and the truncated basis besides. LongRoPE has factors that are searched
           for these windows. Without tuning, every rule has the factor and four times the factor.
           All models of a folder are scored on the same bytes, which lie all over the test text, in
           windows of 256 bytes and of the factor times 256: WORKDIR/factor_4 (8192 scored bytes),
           WORKDIR/factor_8 (4096) and WORKDIR/factor_16 (2048). WORKDIR/tuning has the validation
           loss by the number of steps.
Results:   the folders have results.json and results.csv.
"""

import argparse
import pathlib
from collections.abc import Mapping

from evidence.experiments.program import Program
from evidence.experiments.progressive import found
from evidence.experiments.runs import Run, evaluate_once, train_runs
from evidence.experiments.tables import report
from evidence.experiments.text_extension import LENGTH, SAME_MACHINE, STEPS, base, curve, settings

FACTORS, BYTES = (4, 8, 16), 4096  # bytes of a step
SCORED = 128  # bytes of a window
RULES = {
    'pi': 'pi(factor={}.0)',
    'ntk_aware': 'ntk_aware(factor={}.0)',
    'yarn': 'yarn(factor={}.0)',
}
DYNAMIC = 'dynamic_ntk(factor={}.0)'
FEW = {'rope': '', 'abf': 'abf()', 'truncated': 'giraffe(truncated=True)'}  # with factor 4 alone
DOCUMENTS = {4: 5, 8: 4, 16: 3}  # of the text on which factors are searched


def untuned(factor: int) -> list[str]:
    """The extensions that are read without tuning, but for the searched factors."""
    own = [rule.format(f) for f in (factor, 4 * factor) for rule in RULES.values()]
    return ['', *own, DYNAMIC.format(factor)]


def extensions(factor: int, searched: str) -> dict[str, str]:
    """Name of a tuned run -> its extension."""
    own = {name: rule.format(factor) for name, rule in RULES.items()}
    return {**own, 'longrope': searched, **(FEW if factor == min(FACTORS) else {})}


def tuned(workdir: pathlib.Path, name: str, factor: int, seed: int, spec: str, steps: int) -> Run:
    """A run that continues the base."""
    length = LENGTH * factor
    fields = {'train.length': length, 'train.batch': BYTES // length, 'train.steps': steps}
    fields |= {'train.eval_every': 10, 'train.eval_batches': 4, 'seed': seed}
    fields |= {'init.source': str(workdir / f'base_{seed}'), 'init.extend': spec}
    directory = workdir / f'{name}_{factor}_{seed}'
    return Run(directory, 'configs/extend.py', SAME_MACHINE | fields)


def evaluate(
    workdir: pathlib.Path,
    factor: int,
    bases: Mapping[int, str],
    searched: Mapping[int, str],
    trained: Mapping[tuple[str, int, int], str],
) -> None:
    """Reads everything with one factor on the same bytes."""
    runs = [
        f'{run} | {spec}' if spec else run
        for seed, run in bases.items()
        for spec in (*untuned(factor), searched[seed])
    ]
    runs += [run for (_, own, _), run in trained.items() if own == factor]
    fields = settings(LENGTH, LENGTH * factor, tokens=16384) | {'eval.stride': SCORED}
    evaluate_once(runs, workdir / f'factor_{factor}', fields)


def run(options: argparse.Namespace) -> None:
    """Trains the base, tunes it with every rule for each factor, and evaluates everything."""
    workdir, seeds = options.workdir, options.seeds
    bases = train_runs({seed: base(workdir, seed, options.steps) for seed in seeds})
    trained, searched = {}, {}
    for factor in FACTORS:
        length = LENGTH * factor
        file = lambda seed, length=length: workdir / f'factors_{length}_{seed}.json'
        searched[factor] = {
            seed: found(run, length, file(seed), DOCUMENTS[factor]) for seed, run in bases.items()
        }
        trained |= train_runs(
            {
                (name, factor, seed): tuned(workdir, name, factor, seed, spec, options.tune_steps)
                for seed in seeds
                for name, spec in extensions(factor, searched[factor][seed]).items()
            }
        )
    rows = [
        (f'factor {factor}', name, step, seed, loss)
        for (name, factor, seed), directory in trained.items()
        for step, loss in curve(directory)
    ]
    report(rows, workdir / 'tuning', title='Tuning', x='step', value='nats a byte')
    for factor in FACTORS:
        evaluate(workdir, factor, bases, searched[factor], trained)


PROGRAM = Program(
    __name__, __doc__, run, options={**STEPS, 'tune_steps': (200, 'of the other runs')}
)

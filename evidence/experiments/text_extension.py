"""Extensions of one model of text, as they are and after a short tuning, as the claims read them.

Time:      about 120 minutes on one idle core for three seeds; a base run takes 10 of them
Number:    docs/claims.md, claims R8, R10, R14, R17, R18 and R24 to R28. The base of seed 0 has
           1.14 nats a byte in windows of 256 bytes of the test text, where a table of 5-grams has
           1.28.
Measured:  rope is trained on 256 bytes of Python source. Extensions change it without training, or
           before 100 steps of 2 x 1024 bytes, or of 1 x 4096 for PI with factor 16. The adapters
           beside PI have as many parameters as adapters of a lower rank together with PSC. The
           factors of `longrope` are searched at 2048 bytes before it is tuned. All models of a
           folder are scored on the same bytes, which lie all over the test text: WORKDIR/as_it_is
           to 4 times the trained length, WORKDIR/tuned to 8 times, WORKDIR/eighth and WORKDIR/gali
           at 8 times, WORKDIR/far at 16 times and WORKDIR/very_far at 32 times. GALI takes a pass
           for each chunk, so it is read on fewer bytes. WORKDIR/tuning has the validation loss at
           1024 bytes by the number of steps.
"""

import argparse
import pathlib
from collections.abc import Iterator, Mapping

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_once, searched, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.longrope_search.evolution import Sizes
from posenc_jax.lab.train.metrics_file import FILE, read_lines

LENGTH, FACTOR, SEARCHED = 256, 4, 2048
SAME_MACHINE = {'data.dataset': 'stdlib_code', 'mesh.cpu_devices': 1, 'train.save_every': 500}
ADAPTERS = {'train.tune': 'adapters', 'train.lr': 2e-3}
SCALED = {'model.lora_alpha': 48.0}  # adapters of rank 24 are scaled as those of rank 8
# PSC has two matrices of 32 x 32 for each of 3 heads of queries and of keys: 12,288 numbers a
# layer, as 16 ranks of the adapters of four projections of width 96.
TUNED: dict[str, dict[str, object]] = {
    'rope': {'init.extend': ''},
    'pi': {'init.extend': 'pi(factor=4.0)'},
    'ntk_aware': {'init.extend': 'ntk_aware(factor=4.0)'},
    'yarn': {'init.extend': 'yarn(factor=4.0)'},
    'yarn_16': {'init.extend': 'yarn(factor=16.0)'},
    'abf': {'init.extend': 'abf()'},
    'truncated': {'init.extend': 'giraffe(truncated=True)'},
    'pi_16': {'init.extend': 'pi(factor=16.0)', 'train.length': 4096, 'train.batch': 1},
    'pi_adapters': {'init.extend': 'pi(factor=4.0)', 'model.lora_rank': 24, **ADAPTERS, **SCALED},
    'pi_psc': {'init.extend': 'psc() | pi(factor=4.0)', 'model.lora_rank': 8, **ADAPTERS},
    'longrope': {'init.extend': 'LONGROPE'},
}
RULES = (
    'pi(factor=4.0)', 'ntk_aware(factor=4.0)', 'ntk_aware(factor=16.0)', 'dynamic_ntk(factor=4.0)',
    'yarn(factor=4.0)',
)  # fmt: skip
# GALI reads a text in chunks; the released code adds noise to interpolated logits.
GALI = ('gali(chunk=64)', 'gali(chunk=64, noise=1.0)')
AS_IT_IS = ('', *RULES, 'dca()', 'self_extend(group=8)', *GALI, 'gali(chunk=64, train_len=128)')
EIGHTH = ('', 'yarn(factor=8.0)', 'LONGROPE')
EIGHT = ('yarn(factor=8.0)', 'dynamic_ntk(factor=8.0)', 'dca()', 'self_extend(group=16)', *GALI)
FAR = ('', 'yarn(factor=16.0)', 'dynamic_ntk(factor=16.0)', 'dca()', 'self_extend(group=32)')
VERY_FAR = ('', 'dca()')
BUDGET = Sizes(population=16, parents=8, mutations=4, crossovers=4, iterations=9)


def settings(*lengths: int, tokens: int) -> dict[str, object]:
    """The fields of an evaluation: 4 x `tokens` bytes are read at the largest length."""
    return {
        'eval.lengths': lengths, 'eval.protocols': ('same_tokens',), 'eval.tokens': tokens,
    }  # fmt: skip


def factors(run: str) -> str:
    """The spec of LongRoPE with the factors that a search finds at `SEARCHED` bytes."""
    return searched(run, SEARCHED, BUDGET)['spec']


def base(workdir: pathlib.Path, seed: int, steps: int) -> Run:
    """The run that is extended."""
    fields = {'train.length': LENGTH, 'train.steps': steps, 'train.eval_every': 500, 'seed': seed}
    fields |= {'model.width': 96, 'model.heads': 3, 'train.batch': 8, 'train.lr': 3e-3}
    return Run(workdir / f'base_{seed}', 'configs/quickstart.py', SAME_MACHINE | fields)


def tuned(workdir: pathlib.Path, name: str, seed: int, steps: int) -> Run:
    """A run that continues the base."""
    fields = {'train.length': LENGTH * FACTOR, 'train.batch': 2, 'train.steps': steps, 'seed': seed}
    fields |= {'train.eval_every': 5, 'train.eval_batches': 4}
    source = str(workdir / f'base_{seed}')
    fields |= {'init.source': source, **TUNED[name]}
    if fields['init.extend'] == 'LONGROPE':
        fields['init.extend'] = factors(source)
    return Run(workdir / f'{name}_{seed}', 'configs/extend.py', SAME_MACHINE | fields)


def curve(directory: str) -> Iterator[tuple[float, float]]:
    """Step and validation loss of a run, as it was trained."""
    for row in read_lines(pathlib.Path(directory, FILE)):
        if 'validation_loss' in row:
            yield float(row['step']), float(row['validation_loss'])


def evaluate(workdir: pathlib.Path, trained: Mapping[tuple[str, int], str], seeds: list[int]):
    """Evaluates everything that a claim reads, each group on bytes of its own."""
    bases = [trained['base', seed] for seed in seeds]
    longrope = {run: factors(run) for run in bases}
    extended = lambda specs: [
        f'{run} | {spec.replace("LONGROPE", longrope[run])}' if spec else run
        for run in bases
        for spec in specs
    ]
    of = lambda *names: [trained[name, seed] for seed in seeds for name in names]
    near = [name for name in TUNED if name != 'pi_16']
    for folder, runs, fields in (
        ('as_it_is', extended(AS_IT_IS), settings(256, 1024, tokens=8192)),
        (
            'tuned',
            [*of('base', *near), *extended(('dca()',))],
            settings(256, 1024, 2048, tokens=16384),
        ),
        ('eighth', extended(EIGHTH), settings(256, 2048, tokens=16384)),
        ('gali', extended(EIGHT), settings(256, 2048, tokens=8192)),
        (
            'far',
            [*extended((*FAR, 'lm_infinite()')), *of('pi_16')],
            settings(256, 4096, tokens=16384),
        ),
        ('very_far', extended(VERY_FAR), settings(256, 8192, tokens=32768)),
    ):
        evaluate_once(runs, workdir / folder, fields)


def run(options: argparse.Namespace) -> None:
    """Trains the base, continues it with every extension, and evaluates everything."""
    workdir, seeds = options.workdir, options.seeds
    trained = train_runs({('base', seed): base(workdir, seed, options.steps) for seed in seeds})
    trained |= train_runs(
        {
            (name, seed): tuned(workdir, name, seed, options.tune_steps)
            for seed in seeds
            for name in TUNED
        }
    )
    rows = [
        ('validation loss', name, step, seed, loss)
        for (name, seed), directory in trained.items()
        if name in ('rope', 'pi', 'ntk_aware', 'yarn')
        for step, loss in curve(directory)
    ]
    report(rows, workdir / 'tuning', title='Tuning at 1024 bytes', x='step', value='nats a byte')
    evaluate(workdir, trained, seeds)


STEPS = {'steps': (4000, 'of the base runs'), 'tune_steps': (100, 'of the other runs')}
PROGRAM = Program(__name__, __doc__, run, options=STEPS)

"""Every extension on one of our models to 16 times its trained length, with and without training.

Command:   python -m evidence.experiments extension [--seeds 0 1] [--workdir runs/extension]
Number:    no page has its numbers; `evidence.experiments.text_extension` measures claims on
           extensions
For each seed the sweep trains a base run (rope, trained at 256 tokens of Python source), searches
the factors of LongRoPE for it, fine-tunes it at 1024 tokens (factor 4) with each rule, and
evaluates everything to 4096. Parts that are complete are not done again, so the sweep may be
interrupted and started again. Results: WORKDIR/as_it_is, WORKDIR/fine_tuned (table, results.json,
results.csv, pictures).
"""

import argparse
import functools

from evidence.experiments.program import Program
from evidence.experiments.runs import Run, evaluate_runs, searched, train_runs
from posenc_jax.lab.search.evolution import Sizes
from posenc_jax.lab.search.target import spec_of
from posenc_jax.methods.longrope import LongRoPE

LENGTH, FACTOR = 256, 4
AS_IT_IS = (
    '', 'pi(factor=4.0)', 'ntk_aware(factor=4.0)', 'ntk_aware(factor=16.0)',
    'dynamic_ntk(factor=4.0)', 'yarn(factor=4.0)', 'yarn(factor=16.0)', 'yarn(dynamic=True)',
    'llama3_rope(factor=4.0)', 'llama3_rope(factor=16.0)', 'p_rope(p=0.75)', 'giraffe(factor=4.0)',
    'giraffe(factor=4.0, power=0.1)', 'giraffe(truncated=True)', 'abf()', 'RAMP', 'LONGROPE',
    'dca()', 'self_extend(group=32)', 'string()', 'gali()', 'lm_infinite()', 'ms_poe()',
    'yarn(factor=4.0) | dca()',
)  # fmt: skip
ADAPTERS = {'model.lora_rank': 8, 'train.tune': 'adapters', 'train.lr': 2e-3}
FINE_TUNED = {
    'rope': {'init.extend': ''},
    'pi': {'init.extend': 'pi(factor=4.0)'},
    'ntk_aware': {'init.extend': 'ntk_aware(factor=4.0)'},
    'yarn': {'init.extend': 'yarn(factor=4.0)'},
    'abf': {'init.extend': 'abf()'},
    'longrope': {'init.extend': 'LONGROPE'},
    'xpos_abf': {'init.extend': '', 'encoding': 'xpos_abf()'},
    'pi_adapters': {'init.extend': 'pi(factor=4.0)', **ADAPTERS},
    'pi_psc': {'init.extend': 'psc() | pi(factor=4.0)', **ADAPTERS},
}
BUDGET = Sizes(population=32, parents=16, mutations=8, crossovers=8, iterations=17)  # 300 genomes
EVALUATION = {
    'eval.lengths': (256, 512, 1024, 2048, 4096),
    'eval.protocols': ('same_tokens', 'per_position'),
    'eval.tokens': 16384,
    'eval.buckets': 12,
}


def longrope(run: str) -> dict[str, str]:
    """The specs of LongRoPE with the factors of YaRN's ramp, from which the search starts, and with
    the factors that it finds at `LENGTH * FACTOR` tokens.
    """
    found = searched(run, LENGTH * FACTOR, BUDGET)
    _, start, factors, _ = found['state']['history'][0]  # the first genome is the ramp
    ramp = LongRoPE(long=tuple(factors), factor=float(FACTOR), start=start, train_len=LENGTH)
    return {'RAMP': spec_of(ramp), 'LONGROPE': found['spec']}


def filled(spec: str, factors: dict[str, str]) -> str:
    """The spec with the names of `factors` replaced."""
    return functools.reduce(lambda text, name: text.replace(name, factors[name]), factors, spec)


def fine_tuned(options: argparse.Namespace, name: str, seed: int, factors: dict[str, str]) -> Run:
    """A run that continues the base."""
    fields = {'data.dataset': 'stdlib_code', 'train.length': LENGTH * FACTOR, 'seed': seed}
    fields |= {'init.source': str(options.workdir / f'base_{seed}')}
    fields |= {'train.steps': options.tune_steps}
    fields |= {key: filled(str(value), factors) for key, value in FINE_TUNED[name].items()}
    return Run(options.workdir / f'{name}_{seed}', 'configs/extend.py', fields)


def run(options: argparse.Namespace) -> None:
    """Trains the base, continues it with every rule, and evaluates everything."""
    runs, seeds = {}, options.seeds
    later = [name for name, fields in FINE_TUNED.items() if 'LONGROPE' in fields.values()]
    for seed in seeds:
        fields = {'data.dataset': 'stdlib_code', 'train.length': LENGTH, 'seed': seed}
        fields |= {'train.steps': options.steps, 'train.eval_every': 500, 'train.save_every': 500}
        directory = options.workdir / f'base_{seed}'
        runs['base', seed] = Run(directory, 'configs/quickstart.py', fields)
        for name in FINE_TUNED:
            if name not in later:
                runs[name, seed] = fine_tuned(options, name, seed, {})
    trained = train_runs(runs)
    factors = {seed: longrope(trained['base', seed]) for seed in seeds}
    of = lambda name, seed: fine_tuned(options, name, seed, factors[seed])
    trained |= train_runs({(name, seed): of(name, seed) for seed in seeds for name in later})
    plain = [
        f'{trained["base", seed]} | {filled(spec, factors[seed])}'.removesuffix(' | ')
        for seed in seeds
        for spec in AS_IT_IS
    ]
    evaluate_runs(plain, options.workdir / 'as_it_is', EVALUATION)
    tuned = [trained[name, seed] for seed in seeds for name in FINE_TUNED]
    evaluate_runs(tuned, options.workdir / 'fine_tuned', EVALUATION)


PROGRAM = Program(
    __name__,
    __doc__,
    run,
    options={'steps': (1000, 'of the base runs'), 'tune_steps': (100, 'of the fine-tunes')},
    default_seeds=(0, 1),
)

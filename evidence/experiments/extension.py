"""Every extension on one of our models to 16 times its trained length, with and without training.

Command:   python -m evidence.experiments.extension [--seeds 0 1] [--workdir runs/extension]
Number:    no page has its numbers; `evidence.experiments.text_extension` measures claims on
           extensions
For each seed the sweep trains a base run (rope, trained at 256 tokens of Python source), searches
the factors of LongRoPE for it, fine-tunes it at 1024 tokens (factor 4) with each rule, and
evaluates everything to 4096. Parts that are complete are not done again, so the sweep may be
interrupted and started again. Results: WORKDIR/as_it_is, WORKDIR/fine_tuned (table, results.json,
results.csv, pictures).
"""

import functools
import json
import pathlib

from evidence.experiments.runs import Run, call, evaluate_runs, train_runs
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.search.target import spec_of
from posenc_jax.methods.longrope import LongRoPE

LENGTH, FACTOR = 256, 4
AS_IT_IS = (
    '', 'pi(factor=4.0)', 'ntk_aware(factor=4.0)', 'ntk_aware(factor=16.0)',
    'dynamic_ntk(factor=4.0)', 'yarn(factor=4.0)',
    'yarn(factor=16.0)', 'yarn(dynamic=True)', 'llama3_rope(factor=4.0)',
    'llama3_rope(factor=16.0)', 'p_rope(p=0.75)',
    'giraffe(factor=4.0)', 'giraffe(factor=4.0, '
                           'power=0.1)', 'giraffe(truncated=True)', 'abf()', 'RAMP', 'LONGROPE',
                           'dca()',
    'self_extend(group=32)', 'string()', 'gali()', 'lm_infinite()', 'ms_poe()', 'yarn(factor=4.0) '
                                                                                '| dca()',
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
BUDGET = (
    '--population=32',
    '--parents=16',
    '--mutations=8',
    '--crossovers=8',
    '--iterations=17',
)  # 300 genomes
EVALUATION = (
    'eval.lengths=256,512,1024,2048,4096', 'eval.protocols=same_tokens,per_position',
    'eval.tokens=16384', 'eval.buckets=12',
)  # fmt: skip


def longrope(run: str) -> dict[str, str]:
    """The specs of LongRoPE with the factors of YaRN's ramp, from which the search starts, and with
    the factors that it finds at `LENGTH * FACTOR` tokens.
    """
    found = pathlib.Path(run, f'longrope_{LENGTH * FACTOR}.json')
    call('-m', 'posenc_jax.lab.search', f'--run={run}', f'--length={LENGTH * FACTOR}', *BUDGET)
    found = json.loads(found.read_text())
    _, start, factors, _ = found['state']['history'][0]  # the first genome is the ramp
    ramp = LongRoPE(long=tuple(factors), factor=float(FACTOR), start=start, train_len=LENGTH)
    return {'RAMP': spec_of(ramp), 'LONGROPE': found['spec']}


def filled(spec: str, factors: dict[str, str]) -> str:
    """The spec with the names of `factors` replaced."""
    return functools.reduce(lambda text, name: text.replace(name, factors[name]), factors, spec)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', default='runs/extension')
    parser.add_argument('--steps', type=int, default=1000, help='of the base runs')
    parser.add_argument('--tune_steps', type=int, default=100, help='of the fine-tunes')
    arguments = parser.parse_args()
    workdir, runs = pathlib.Path(arguments.workdir), {}

    def fine_tune(name, seed, factors):
        fields = {'data.dataset': 'stdlib_code', 'train.length': LENGTH * FACTOR, 'seed': seed}
        fields |= {
            'init.source': str(workdir / f'base_{seed}'),
            'train.steps': arguments.tune_steps,
        }
        fields |= {key: filled(str(value), factors) for key, value in FINE_TUNED[name].items()}
        return Run(workdir / f'{name}_{seed}', 'configs/extend.py', fields)

    searched = [name for name, fields in FINE_TUNED.items() if 'LONGROPE' in fields.values()]
    for seed in arguments.seeds:
        base = {
            'data.dataset': 'stdlib_code',
            'train.length': LENGTH,
            'train.steps': arguments.steps,
            'seed': seed,
        }
        base |= {'train.eval_every': 500, 'train.save_every': 500}
        runs['base', seed] = Run(workdir / f'base_{seed}', 'configs/quickstart.py', base)
        runs |= {
            (name, seed): fine_tune(name, seed, {}) for name in FINE_TUNED if name not in searched
        }
    trained = train_runs(runs)
    factors = {seed: longrope(trained['base', seed]) for seed in arguments.seeds}
    trained |= train_runs(
        {
            (name, seed): fine_tune(name, seed, factors[seed])
            for seed in arguments.seeds
            for name in searched
        }
    )
    plain = []
    for seed in arguments.seeds:
        base = trained['base', seed]
        plain += [f'{base} | {filled(spec, factors[seed])}' if spec else base for spec in AS_IT_IS]
    evaluate_runs(plain, workdir / 'as_it_is', EVALUATION)
    tuned = [trained[name, seed] for seed in arguments.seeds for name in FINE_TUNED]
    evaluate_runs(tuned, workdir / 'fine_tuned', EVALUATION)


if __name__ == '__main__':
    main()

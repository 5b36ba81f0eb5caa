"""Searches the factors of `longrope` for a trained model and a target length; a search that was
stopped goes on.

    python -m posenc_jax.search --run=RUN_OR_CHECKPOINT --length=T [--population=64
        --iterations=40 --parents=32 --mutations=16 --crossovers=16 --probability=0.3 --documents=5
        --seed=0 --variant=free|dim_piece_mono --out=FILE.json] [--config.NAME=VALUE ...]

The run is a directory that train.py wrote, a Hugging Face directory, or a .gguf file. Minimised is
the mean perplexity of --documents windows of T tokens, spread evenly over the validation split.
After every iteration FILE.json (default: longrope_T.json in the run, or in runs/NAME-PLACE) holds
the whole state, and FILE.json.scores what has been scored since; the same command continues from
there and ends as if it had never been stopped. Its last field `spec` is what eval.py takes as
--config.extend and configs/extend.py as --config.init.extend.

A run with factors of `longrope` already, up to s times its original length L, is searched on, for
the paper's progressive extension: at T above s L for factors that multiply those it has (`best`
holds them, `spec` the products, for T / L); at T up to L for the list `short`, while all else
stays. --run='RUN | longrope(...)' gives a run the factors. E.g. trained at 128:

    ... --run=BASE --length=512
    python train.py --config=configs/extend.py --config.init.source=BASE \
        --config.init.extend='SPEC_512' --config.name=TUNED
    ... --run=TUNED --length=2048
    ... --run='TUNED | SPEC_2048' --length=128
"""

import dataclasses
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from posenc_jax.core import disk
from posenc_jax.core import spec as spec_language
from posenc_jax.core.command import Parser
from posenc_jax.core.encoding import Constant
from posenc_jax.core.numerics import phase
from posenc_jax.core.registry import SpecError
from posenc_jax.evaluation.language import score_windows
from posenc_jax.evaluation.scoring import scorer, token_scores
from posenc_jax.model.transformer import Transformer, abstract_model
from posenc_jax.rotation.frequencies.longrope import LongRoPE
from posenc_jax.rotation.rope import Rotary, rope_frequencies
from posenc_jax.run.job import home_of, prepare
from posenc_jax.run.json_file import listed
from posenc_jax.run.lock import hold
from posenc_jax.run.overrides import read_overrides
from posenc_jax.run.protocols import Windows
from posenc_jax.search.evolution import (  # fmt: skip
    STARTS,
    VARIANTS,
    Genome,
    Objective,
    Sizes,
    Space,
    State,
    advance,
    begin,
    initial_genomes,
    short_genomes,
)
from posenc_jax.training.metrics import LiveLine

_DECIDED = ('extend', 'eval.lengths', 'eval.split', 'eval.protocols')  # by the search


class SettingsChangedError(ValueError):
    """The file belongs to a search with other arguments; the message lists the differences."""


class SearchedRotary(Rotary):
    """A rotary encoding whose frequencies and `start` are variables, so that one compiled program
    scores every genome.

    The frequencies are float32: their relative rounding of 6e-8 shifts an angle by at most 6e-8
    times its size, 0.06 rad at position 1e6 for the highest frequency. The answer is scored again
    by the exact rule.
    """

    def __init__(self, part: Rotary, temperature: float):
        super().__init__(part.base, part.layout, part.partial, None, part.head_dim)
        self.temperature = temperature
        self.inv_freq = Constant(jnp.zeros(self.rotary_dim // 2, jnp.float32))
        self.start = Constant(jnp.zeros((), jnp.int32))

    def angles(self, pos, length=None):
        plain, _ = super().angles(pos)
        early = pos < self.start[...]
        return jnp.where(early[..., None], plain, phase(pos, self.inv_freq[...])), jnp.where(
            early, 1.0, self.temperature
        )


def spec_of(rule: LongRoPE) -> str:
    """The context extension that puts a rule in the place of the one that a model has.

    It says the original length: a run that was tuned at a longer one would give that.

    Example:
      >>> spec_of(LongRoPE(long=(1.0, 2.5), factor=4.0, start=4, train_len=64))
      'longrope(long=(1.0, 2.5), factor=4.0, start=4, train_len=64)'
    """
    values = [(field, getattr(rule, field.name)) for field in dataclasses.fields(rule)]
    given = [f'{field.name}={value!r}' for field, value in values if value != field.default]
    return f'longrope({", ".join(given)})'


@dataclasses.dataclass(frozen=True)
class Target:
    """What is searched: one list of a rule.

    Attributes:
      now: the rule of the run; factors of 1 where that is not LongRoPE.
      name: 'long', whose factors those of a genome multiply, or 'short', whose factors they are.
      factor: of the rule that is found, longest length / original length.
    """

    now: LongRoPE
    name: Literal['long', 'short']
    factor: float

    def rule(self, genome: Genome) -> LongRoPE:
        """The rule that a genome stands for.

        Example:
          >>> now = LongRoPE(long=(1.0, 3.0), factor=4.0, train_len=64)
          >>> Target(now, 'long', 16.0).rule(Genome((1.5, 2.0), 8)).long
          (1.5, 6.0)
        """
        if self.name == 'short':
            return dataclasses.replace(self.now, short=genome.factors)
        long = np.multiply(self.now.long, genome.factors).round(10)  # genomes are as exact
        return dataclasses.replace(
            self.now, long=tuple(long.tolist()), start=genome.start, factor=self.factor
        )

    def space(self, length: int, probability: float, variant: str) -> Space:
        """Of genomes: the list short reaches as far as the list long, and the one n_hat of both
        stays as it is.
        """
        planes = len(self.now.long)
        if self.name == 'short':
            return Space(planes, self.factor, (self.now.start,), probability, variant)
        starts = tuple(
            start for start in dict.fromkeys((self.now.start, *STARTS)) if start < length
        )
        return Space(planes, self.factor / self.now.factor, starts, probability, variant)

    def seeds(self, space: Space, rotary_dim: int, base: float) -> list[Genome]:
        """The first genomes."""
        if self.name == 'short':
            return short_genomes(space, self.now.long, self.now.short)
        return initial_genomes(space, rotary_dim, base, _reach(self.now), self.now.long)


def _reach(rule: LongRoPE) -> int:
    """The length that a rule is for."""
    return round(rule.factor * rule.train_len)


def target_of(run: str, part: Rotary, train_len: int, length: int) -> Target:
    """What a search at this length is for.

    Args:
      run: what messages call it.
      part, train_len: its rotary encoding, and the length it was trained at.
      length: T.

    Raises:
      ValueError: nothing is searched at this length, or no search goes on from a rule of this kind.
    """
    now = part.freqs
    if now is not None and not isinstance(now, LongRoPE):
        raise SpecError(
            f'{run} has the frequencies {now}, whose factors no search knows; it starts from '
            'rope or from longrope'
        )
    if now is None:
        if length < train_len:
            raise ValueError(
                f'length {length} is shorter than the trained one; it must be at least {train_len}'
            )
        plain = LongRoPE(long=(1.0,) * (part.rotary_dim // 2), factor=1.0, train_len=train_len)
        return Target(plain, 'long', length / train_len)
    for name, usual in (('dynamic', False), ('mode', 'length')):
        if (value := getattr(now, name)) != usual:
            raise SpecError(
                f'{run} has longrope with {name}={value!r}; a search goes on from '
                f'{name}={usual!r} only'
            )
    if length > _reach(now):
        return Target(now, 'long', length / now.train_len)
    if length > now.train_len:
        raise ValueError(
            f'{run} has factors of LongRoPE up to length {_reach(now)} already; ask for more to '
            'search what multiplies them, '
            f'or for at most {now.train_len} to search the list short; got {length}'
        )
    if length <= now.start:
        raise ValueError(
            f'the first {now.start} positions of {run} have no factors; at length {length} none '
            'is searched'
        )
    return Target(now, 'short', now.factor)


def rotary_part(model: Transformer) -> Rotary:
    """The rotary encoding that `longrope` takes over, one kind in all layers that have any.

    Args:
      model: possibly of shapes only.

    Raises:
      SpecError: there is none, or layers differ in its width, its base, or factors that it has
        already.
    """
    found = {
        (part.rotary_dim, part.base, _factors(part)): part
        for part in model.shared
        if isinstance(part, Rotary)
    }
    if not found:
        raise SpecError(
            f'longrope extends a rotary encoding; there is none in {" / ".join(model.cfg.specs)}'
        )
    if len(found) > 1:
        kinds = ', '.join(
            f'width {width} with base {base}' + (f' and {rule}' if rule else '')
            for width, base, rule in found
        )
        raise SpecError(
            f'one list of factors serves one kind of rotary encoding; this model has {kinds}'
        )
    return next(iter(found.values()))


def _factors(part):
    return spec_of(part.freqs) if isinstance(part.freqs, LongRoPE) else None


def perplexity_of(
    score: Callable, stream: Int[np.ndarray, ' N'], windows: Windows, rows: int
) -> float:
    """The mean over windows of the perplexity of each."""
    nll, *_ = score_windows(score, stream, windows, rows)
    return float(np.exp(nll.astype(np.float64).mean(axis=1)).mean())


def make_objective(
    model: Transformer, target: Target, stream: Int[np.ndarray, ' N'], windows: Windows, rows: int
) -> Objective:
    """Mean perplexity of the windows under a genome, by one program that is compiled once."""
    part = rotary_part(model)
    theta = rope_frequencies(part.rotary_dim, part.base)
    temperature = dataclasses.replace(target.now, factor=target.factor).temperature
    model = nnx.clone(model)
    model.shared = nnx.List(
        [SearchedRotary(p, temperature) if isinstance(p, Rotary) else p for p in model.shared]
    )
    graphdef, state = nnx.split(model)

    @jax.jit
    def scored(state, inv_freq, start, tokens, targets, tok):
        model = nnx.merge(graphdef, state)
        for part in model.shared:
            if isinstance(part, SearchedRotary):
                part.inv_freq[...], part.start[...] = inv_freq, start
        return token_scores(model, tokens, targets, tok)

    def objective(genome):
        rule = target.rule(genome)
        inv_freq, start = (
            jnp.asarray(theta / getattr(rule, target.name), jnp.float32),
            jnp.asarray(rule.start, jnp.int32),
        )
        score = lambda tokens, targets, tok, key=None: scored(
            state, inv_freq, start, tokens, targets, tok
        )
        return perplexity_of(score, stream, windows, rows)

    return objective


def pick_documents(targets: int, length: int, documents: int) -> Windows:
    """Windows of `length` targets that do not overlap, spread evenly over a text.

    Raises:
      ValueError: the text has fewer, or none is asked for.

    Example:
      >>> pick_documents(100, 10, 3).start.tolist()
      [0, 40, 90]
    """
    if documents < 1:
        raise ValueError(f'documents must be at least 1, got {documents}')
    whole = targets // length
    if whole < documents:
        most = f'at most {whole} documents, or ' if whole else ''
        raise ValueError(
            f'the validation split has {targets + 1} tokens, {documents} documents of {length} '
            f'need {documents * length + 1}; '
            f'use {most}a longer text'
        )
    start = np.linspace(0, whole - 1, documents).round().astype(np.int64) * length
    full = np.full(documents, length)
    return Windows(length, start, full, full)


_QUIET_SECONDS = 20.0


class Progress(LiveLine):
    """Iteration, best perplexity, evaluations done and time left: one live line in a terminal, a
    plain line for each iteration elsewhere, and for every evaluation of those that take long.
    """

    def __init__(self, sizes: Sizes, done: int):
        super().__init__('', done, sizes.evaluations)
        self._sizes, self._done = sizes, done
        self._text, self._clock, self._said = 'compiling', None, time.perf_counter()

    def counting(self, objective: Objective) -> Objective:
        """The objective, with every evaluation counted."""

        def counted(genome):
            score = objective(genome)
            self._done += 1
            self._clock = self._clock or (
                self._done,
                time.perf_counter(),
            )  # the first one contains compilation
            self.show(completed=self._done, text=f'{self._text}  {self._left()} left')
            if self._bar is None and time.perf_counter() - self._said > _QUIET_SECONDS:
                self._say_where()
            return score

        return counted

    def report(self, state: State) -> None:
        """Shows an iteration that is finished and saved."""
        self._text = (
            f'iteration {state.iteration}/{self._sizes.iterations}  best perplexity '
            f'{state.trace[-1]:.4f}'
        )
        if self._bar is None:
            self._say_where()
        self.show(text=f'{self._text}  {self._left()} left')

    def _say_where(self):
        self._said = time.perf_counter()
        self.say(
            f'{self._text}  evaluation {self._done}/{self._sizes.evaluations}  {self._left()} left'
        )

    def _left(self) -> str:
        if self._clock is None or self._done == self._clock[0]:
            return '?'
        first, since = self._clock
        each = (time.perf_counter() - since) / (self._done - first)
        return str(datetime.timedelta(seconds=round(each * (self._sizes.evaluations - self._done))))


def read(path: pathlib.Path, asked: Mapping[str, Any]) -> tuple[State | None, dict[str, Any]]:
    """The state in a file, and all its fields; None and {} where there is no file.

    Raises:
      SettingsChangedError: the file belongs to other settings than those in `asked`.
      ValueError: it was not written by a search.
    """
    if not path.exists():
        return None, {}
    try:
        fields = json.loads(path.read_text())
        stored, state = fields['settings'], State.from_json(fields['state'])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f'{path} was not written by a search of longrope factors ({error!r}); choose another '
            '--out'
        ) from None
    asked = json.loads(json.dumps(asked))
    differs = [name for name, value in asked.items() if stored.get(name) != value]
    changed = [f'{name}: {stored.get(name)!r} there, {asked[name]!r} here' for name in differs]
    if changed:
        raise SettingsChangedError(
            f'{path} is of a search with other arguments: {listed(changed)}; give the arguments '
            'it was begun with to continue it, '
            'or another --out'
        )
    return state, fields


def write(
    path: pathlib.Path, asked: Mapping[str, Any], target: Target, state: State, **found
) -> None:
    """Writes the file of a search; it is complete or as it was before."""
    fields = {
        'settings': asked,
        'iteration': state.iteration,
        'evaluations': len(state.history),
        'state': state.to_json(),
        'trace': state.trace,
        'best': {
            'perplexity': state.trace[-1],
            'start': state.best.start,
            'factors': state.best.factors,
        },
        **found,
        'spec': spec_of(target.rule(state.best)),
    }
    disk.write(path, json.dumps(fields) + '\n')


def remembered(path: pathlib.Path, asked: Mapping[str, Any], objective: Objective) -> Objective:
    """The objective with every score appended to a file as it is found, and none found twice: an
    iteration that is cut short begins again, from the same random state, but not from nothing.

    Args:
      path: of the scores; begun anew where it belongs to other settings.
      asked: the settings.
    """
    head = json.dumps(asked)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {}
    if lines[:1] == [head]:
        for line in lines[1:]:
            try:
                score, start, factors = json.loads(line)
            except ValueError:
                break  # cut short while it was written
            known[Genome(tuple(factors), start)] = score
    rows = [json.dumps([score, genome.start, genome.factors]) for genome, score in known.items()]
    disk.write(path, '\n'.join([head, *rows, '']))
    file = disk.Appended(path)

    def scored(genome):
        if genome not in known:
            known[genome] = float(objective(genome))
            file.write((json.dumps([known[genome], genome.start, genome.factors]) + '\n').encode())
        return known[genome]

    return scored


def run_search(
    path: pathlib.Path,
    asked: Mapping[str, Any],
    target: Target,
    state: State | None,
    objective: Objective,
    seeds: list[Genome],
    space: Space,
    sizes: Sizes,
) -> State:
    """Takes a search from where it stands to its end, and writes the file after every iteration.

    Args:
      path, asked, target: of the file, see `write`; `asked['seed']` seeds a new search.
      state: where it stands, see `read`; None begins.
      objective: scores a genome, lower is better.
      seeds, space, sizes: see `evolution`.
    """
    scores = path.with_name(path.name + '.scores')
    with Progress(sizes, 0 if state is None else len(state.history)) as progress:
        objective = progress.counting(remembered(scores, asked, objective))
        if state is not None:
            progress.say(
                f'{path}: continuing after iteration {state.iteration} of {sizes.iterations}'
            )
        while state is None or state.iteration < sizes.iterations:
            if state is None:
                state = begin(seeds, space, sizes, objective, asked['seed'])
            else:
                state = advance(state, space, sizes, objective)
            write(path, asked, target, state)
            progress.report(state)
    scores.unlink()
    return state


def search(
    run: str,
    length: int,
    sizes: Sizes = Sizes(),
    *,
    probability: float = 0.3,
    documents: int = 5,
    seed: int = 0,
    variant: str = 'free',
    out: pathlib.Path | None = None,
    overrides: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Searches factors for a run or public checkpoint at a length; returns the file it wrote.

    All that can be wrong is found before the weights are read.

    Args:
      run: directory of a run, or a public checkpoint; with ' | longrope(...)' the factors that it
        is searched on from.
      length: T; at least the trained length, or see `target_of` for a run that has factors already.
      sizes, probability, variant: see `Sizes` and `Space`.
      documents: how many windows of T tokens score a genome.
      seed: of the search.
      out: the file; None is the default of the command.
      overrides: dotted names of fields of the config -> values.

    Raises:
      SettingsChangedError: the file belongs to a search with other arguments.
      HeldError: another process writes it.
      ValueError: anything else that is wrong with the arguments, the model or the text.
      FileNotFoundError: no such run.
    """
    overrides = dict(overrides or {})
    if taken := sorted(overrides.keys() & set(_DECIDED)):
        raise SpecError(
            f'config.{taken[0]} is decided by the search, which reads the validation split at '
            '--length'
        )
    directory, _, rule = run.partition('|')
    if rule and [
        node.entry.key for node in spec_language.parse(rule, ('extension', 'frequencies')).nodes
    ] != ['longrope']:
        raise SpecError(
            f'the search finds an extension of {directory.strip()}; give it alone or with '
            f'longrope, not {run!r}'
        )
    if length < 1:
        raise ValueError(f'length must be at least 1, got {length}')
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')
    decided = dict(zip(_DECIDED, ('', (length,), 'validation', ('nonoverlapping',))))
    job = prepare(run, {**overrides, **decided})
    if not job.task.is_language:
        raise SpecError(
            f'the search minimises perplexity; {run} was trained on {job.config.task}, which has '
            'none'
        )
    part = rotary_part(abstract_model(job.cfg, job.config.extend))
    target = target_of(run, part, job.cfg.train_len, length)
    now, space = target.now, target.space(length, probability, variant)
    seeds = target.seeds(space, part.rotary_dim, part.base)
    stream = job.task.tokens('validation')
    windows = pick_documents(len(stream) - 1, length, documents)
    path = out or default_output(run, length)
    asked = dict(
        run=run, length=length, train_len=now.train_len, factor=target.factor,
        rotary_dim=part.rotary_dim, base=part.base,
        rule=_factors(part), **dataclasses.asdict(sizes), probability=probability,
        documents=documents, seed=seed,
        variant=variant, overrides=overrides,
    )  # fmt: skip
    with hold(
        path.with_name(path.name + '.lock'), f'{path} is being searched', 'choose another --out'
    ):
        state, fields = read(path, asked)
        model, step = job.load()
        asked['step'] = step
        if state is not None:
            read(path, asked)  # the run may have been trained further
        if 'exact' in fields:
            return path
        rows = min(job.rows(length), documents)  # a batch is filled up
        if any(list(factors or ()) != sorted(factors or ()) for factors in (now.long, now.short)):
            print(
                f'{run}: its factors descend in places; those searched ascend, so that products '
                'may descend where they do'
            )
        objective = make_objective(model, target, stream, windows, rows)
        state = run_search(path, asked, target, state, objective, seeds, space, sizes)
        exact = perplexity_of(
            scorer(model.extend(spec_of(target.rule(state.best)))), stream, windows, rows
        )
        as_it_is = perplexity_of(scorer(model), stream, windows, rows)
        first = {
            'yarn_ramp' if target.name == 'long' else 'ones': next(iter(state.history.values()))
        }
        write(
            path, asked, target, state, exact={'perplexity': exact, 'as_it_is': as_it_is, **first}
        )
    return path


def default_output(run: str, length: int) -> pathlib.Path:
    """longrope_LENGTH.json in the directory of a run, or where `home_of` keeps a public
    checkpoint's.
    """
    return home_of(run) / f'longrope_{length}.json'


def arguments(argv: list[str] | None) -> dict[str, Any]:
    """What `search` is called with."""
    parser = Parser('python -m posenc_jax.search', description=__doc__)
    parser.add_argument(
        '--run', required=True, metavar='DIR', help='run directory or public checkpoint'
    )
    parser.add_argument(
        '--length', required=True, type=int, metavar='T', help='target length in tokens'
    )
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f'--{field.name}', type=int, default=field.default, metavar='N')
    parser.add_argument(
        '--probability', type=float, default=0.3, metavar='P', help='that a gene is visited'
    )
    parser.add_argument(
        '--documents',
        type=int,
        default=5,
        metavar='N',
        help='windows of T tokens that score a genome',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    parser.add_argument('--variant', default='free', metavar='|'.join(VARIANTS))
    parser.add_argument('--out', type=pathlib.Path, metavar='FILE.json')
    known, rest = parser.parse_known_args(argv)
    try:
        overrides = read_overrides(rest)
    except ValueError as error:
        parser.error(f'{error}; expected one of the options above or --config.NAME=VALUE')
    given = vars(known)
    try:
        sizes = Sizes(**{field.name: given.pop(field.name) for field in dataclasses.fields(Sizes)})
    except ValueError as error:
        parser.error(str(error))
    return {**given, 'sizes': sizes, 'overrides': overrides}


def main(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    try:
        path = search(**asked)
    except (ValueError, OSError, ImportError) as error:
        print(f'longrope search: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            'longrope search: stopped; the same command continues after the last finished '
            'iteration',
            file=sys.stderr,
        )
        return 130
    fields = json.loads(path.read_text())
    length, exact = fields['settings']['length'], fields['exact']
    first, name = (
        ('yarn_ramp', 'the ramp of YaRN') if 'yarn_ramp' in exact else ('ones', 'factors of 1')
    )
    print(
        f'perplexity at {length}: {exact[first]:.4f} with {name}, {exact["perplexity"]:.4f} '
        'searched'
    )
    if 'as_it_is' in exact:  # files of earlier searches have none
        print(f'{exact["as_it_is"]:.4f} with nothing changed')
    if exact.get('as_it_is', float('inf')) < exact['perplexity']:
        print(f'{fields["settings"]["run"]} is better as it is: a longer search may find more')
    print(f'{path}\n{fields["spec"]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""A LongRoPE search of a trained model, from its arguments to its file. A search that was stopped
continues from its file.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from posenc_jax.lab.config.overrides import COMPUTING
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.files.lock import hold
from posenc_jax.lab.longrope_search.critical import critical_target
from posenc_jax.lab.longrope_search.evolution import Objective, Sizes, State, advance, begin
from posenc_jax.lab.longrope_search.genome import VARIANTS, Genome, Space
from posenc_jax.lab.longrope_search.needles import needle_windows
from posenc_jax.lab.longrope_search.objective import make_objective, perplexity_of, pick_documents
from posenc_jax.lab.longrope_search.state_file import read, remembered, write
from posenc_jax.lab.longrope_search.target import (
    Target,
    factors_of,
    rotary_part,
    spec_of,
    target_of,
)
from posenc_jax.lab.runs.prepare import home_of, prepare
from posenc_jax.lab.train.metrics import LiveLine
from posenc_jax.language import spec as spec_language
from posenc_jax.layer.sharding import whole_rows
from posenc_jax.protocol.errors import SpecError, check_choice

_DECIDED = ('extend', 'eval.lengths', 'eval.split', 'eval.protocols')  # fields that `search` sets
_QUIET_SECONDS = 20.0
OBJECTIVES = ('perplexity', 'needle')


class Progress(LiveLine):
    """Shows iteration, best perplexity, evaluations done and time left. In a terminal this is one
    live line. Elsewhere a line is printed after every iteration, and after an evaluation if nothing
    was printed for 20 seconds.
    """

    def __init__(self, sizes: Sizes, done: int):
        super().__init__('', done, sizes.evaluations)
        self._sizes, self._done = sizes, done
        self._text, self._said = 'compiling', time.perf_counter()

    def counting(self, objective: Objective) -> Objective:
        """The objective, with every evaluation counted."""

        def counted(genome):
            score = objective(genome)
            self._done += 1
            self.show(completed=self._done)
            self.show(text=f'{self._text}  {self.left()}')
            if not self.in_terminal and time.perf_counter() - self._said > _QUIET_SECONDS:
                self._say_where()
            return score

        return counted

    def report(self, state: State) -> None:
        """Shows an iteration that is finished and saved."""
        self._text = (
            f'iteration {state.iteration}/{self._sizes.iterations}  best perplexity '
            f'{state.trace[-1]:.4f}'
        )
        if not self.in_terminal:
            self._say_where()
        self.show(text=f'{self._text}  {self.left()}')

    def _say_where(self):
        self._said = time.perf_counter()
        self.say(f'{self._text}  evaluation {self._done}/{self._sizes.evaluations}  {self.left()}')


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
    """Runs a search from `state` to its end, and writes the file after every iteration.

    Args:
      path, asked, target: the file and its contents, see `write`; `asked['seed']` seeds a new
        search.
      state: the state from which the search continues, see `read`; None begins a new search.
      objective: gives a score to a genome; lower is better.
      seeds, space, sizes: see `evolution`.
    """
    scores = scores_of(path)
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
    objective: str = 'perplexity',
    out: pathlib.Path | None = None,
    overrides: Mapping[str, str] | None = None,
    trust_imports: bool = False,
) -> pathlib.Path:
    """Searches factors for a run or public checkpoint at a length; returns the file it wrote.

    Errors are raised before the weights are read, apart from two: the run has been trained further
    since the file was written, or the first genome has no finite perplexity.

    Args:
      run: directory of a run, or a public checkpoint. 'RUN | longrope(...)' gives the run factors
        from which the search continues.
      length: T, in tokens, at least the trained length. For a run that has factors already, see
        `target_of`.
      sizes, probability, variant: see `Sizes` and `Space`; the variant 'critical' searches the
        rule `longrope2`.
      documents: how many windows of T tokens score a genome.
      seed: of the random choices, at least 0.
      objective: 'perplexity' of whole windows, or 'needle', that of an answer alone, see
        `needle_windows`.
      out: the file; None for `default_output`.
      overrides: dotted names of fields of the config -> values.
      trust_imports: whether code that the run brings may be executed, see `lab/runs/trust.py`.

    Raises:
      SettingsChangedError: the file belongs to a search with other arguments.
      HeldError: another process writes the file.
      ValueError: any other error in the arguments, the model or the text.
      FileNotFoundError: no such run.
      UntrustedError: the run brings code, and `trust_imports` is False.
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
            f'the search finds an extension of {directory.strip()}; give the run alone or with '
            f'longrope, not {run!r}'
        )
    check_choice('variant', variant, (*VARIANTS, 'critical'))
    check_choice('objective', objective, OBJECTIVES)
    if length < 1:
        raise ValueError(f'length must be at least 1, got {length}')
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')
    decided = dict(zip(_DECIDED, ('', (length,), 'validation', ('nonoverlapping',))))
    opened = prepare(run, {**overrides, **decided}, trust_imports=trust_imports)
    if not opened.task.is_language:
        raise SpecError(
            f'the search minimises perplexity; {run} was trained on {opened.config.task}, which '
            'has none'
        )
    mesh = opened.mesh
    # The scores are the same up to rounding however they are computed and on every mesh, so a
    # search may continue in another way.
    incidental = ('mesh.', *COMPUTING)
    stated = {name: value for name, value in overrides.items() if not name.startswith(incidental)}
    part = rotary_part(opened.extended_model)
    target = target_of(run, part, opened.cfg.train_len, length)
    if variant == 'critical':
        target = critical_target(run, target, part, seed)
    now, space = target.now, target.space(length, probability, variant)
    seeds = target.seeds(space, part.rotary_dim, part.base)
    stream = opened.task.tokens('validation')
    windows = pick_documents(len(stream) - 1, length, documents)
    if objective == 'needle':
        encode = functools.partial(opened.task.vocabulary.encode, begins=False)
        stream, windows = needle_windows(encode, stream, windows, seed)
    path = out or default_output(run, length)
    asked = dict(
        run=run, length=length, train_len=now.train_len, factor=target.factor,
        rotary_dim=part.rotary_dim, base=part.base,
        rule=factors_of(part), **dataclasses.asdict(sizes), probability=probability,
        documents=documents, seed=seed,
        variant=variant, objective=objective, overrides=stated,
    )  # fmt: skip
    with hold(
        path.with_name(path.name + '.lock'), f'{path} is being searched', 'choose another --out'
    ):
        state, fields = read(path, asked)
        model, step = opened.load(mesh)
        asked['step'] = step
        if state is not None:
            read(path, asked)  # the run may have been trained further
        if 'exact' in fields:
            return path
        # Every batch is padded to this number of rows.
        rows = whole_rows(mesh, min(opened.rows(length), documents))
        if any(list(factors or ()) != sorted(factors or ()) for factors in (now.long, now.short)):
            print(
                f'{run}: its factors descend in places. The searched factors ascend, so their '
                'products may descend in the same places'
            )
        score = make_objective(model, target, stream, windows, rows, mesh)
        state = run_search(path, asked, target, state, score, seeds, space, sizes)
        found = model.extend(spec_of(target.rule(state.best)))
        exact, as_it_is = (
            perplexity_of(scorer(m, mesh), stream, windows, rows) for m in (found, model)
        )
        first = {target.first: next(iter(state.history.values()))}
        write(
            path, asked, target, state, exact={'perplexity': exact, 'as_it_is': as_it_is, **first}
        )
    return path


def scores_of(path: pathlib.Path) -> pathlib.Path:
    """Where a search that writes `path` keeps the scores it has found since."""
    return path.with_name(path.name + '.scores')


def default_output(run: str, length: int) -> pathlib.Path:
    """longrope_LENGTH.json in the directory of a run; for a public checkpoint, in the directory
    that `home_of` gives.
    """
    return home_of(run) / f'longrope_{length}.json'

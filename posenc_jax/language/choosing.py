"""`choose`: which encoding to try first, by the answers to a few questions.

`posenc_jax/choosing.toml` has the advice, which docs/choosing.md shows too. What a choice prints of
time, memory and claims is that of `language/measured.py`.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posenc_jax.language import measured
from posenc_jax.language.catalog import KINDS, entries_of
from posenc_jax.language.catalog.screen import filled
from posenc_jax.language.spec import parse
from posenc_jax.protocol.errors import (
    SpecError,
    check_choice,
    check_flag,
    check_number,
    names_checked,
)
from posenc_jax.protocol.registry import entries

_FOLDER = pathlib.Path(__file__).parents[1]
LARGEST_FACTOR = 64.0  # of all that was measured
# What a need is about if it does not say otherwise, so that no answer is ignored.
PLAIN = dict(checkpoint=False, factor=(0, 1), needs='loss')
# Question -> the answers, where these are words.
QUESTIONS = {
    'data': ('text', 'images', 'pictures in text', 'field', 'globe', 'points', 'graph', 'tree',
             'signal', 'translation'),
    'needs': ('loss', 'far context', 'retrieval', 'hidden tokens', 'streams', 'state', 'lists',
              'arithmetic', 'numbers', 'speed', 'finer', 'larger', 'shifts', 'volume',
              'means of pixels', 'unknown places'),
    'memory': ('all', 'constant'),
    'loads': ('', 'transformers', 'gguf'),
}  # fmt: skip


def anchor(title: str) -> str:
    """The name of a heading in links of a Markdown page.

    Example:
      >>> anchor('Images are larger, finer or shifted')
      'images-are-larger-finer-or-shifted'
    """
    return ''.join(c for c in title.lower() if c.isalnum() or c in ' -').replace(' ', '-')


@dataclasses.dataclass(frozen=True)
class Pick:
    """One method to take.

    Attributes:
      spec: its spec string; `{factor}` and `{twice}` stand for the factor that is asked for and for
        twice it, as a whole number.
      why: what speaks for it beside the advice of the need, in a sentence.
      loads: which other libraries can read a model with it.
      when: the answers for which it is taken, as for a `Need`.
    """

    spec: str
    why: str = ''
    loads: Sequence[str] = ()
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Need:
    """What somebody may want, and what the claims say of it.

    Attributes:
      title: what is wanted, as a sentence.
      when: question -> the answer, or a list of answers, with which the need is meant; of 'factor'
        the interval, without its lower end. Of questions that are not named, those of `PLAIN` have
        its answers, and the others do not matter.
      take: advice in one or two sentences; '' if no verdict supports one.
      picks: what to take, the first one first.
      scale: the models on which the advice rests.
      first: what the reader must know before they read the advice.
      rests: claim -> the verdict without which the advice is not given.
      others: further claims that bear on the need.
      limits: what the reader must know before they follow the advice, and what no claim is about.
    """

    title: str
    when: Mapping[str, Any]
    take: str = ''
    picks: Sequence[Pick] = ()
    scale: str = ''
    first: str = ''
    rests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: Sequence[str] = ()
    limits: str = ''

    @property
    def claims(self) -> tuple[str, ...]:
        return (*self.rests, *self.others)

    @property
    def anchor(self) -> str:
        """Of the section in docs/choosing.md."""
        return anchor(self.title)


@dataclasses.dataclass(frozen=True)
class Unmeasured:
    """A group of answers without advice.

    Attributes:
      when: question -> the answer, or a list of answers, as for a `Need`; questions that are not
        named do not matter.
      says: what was not measured, or why there is nothing to choose, as a sentence.
    """

    when: Mapping[str, Any]
    says: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `choose` returns. It prints as a text: the advice, what the methods cost, the models on
    which the advice rests, and the verdict and the effect of each of its claims.

    Attributes:
      spec: what to try first.
      others: further spec strings, in the order of the advice.
      need: the advice with its claims.
    """

    spec: str
    others: tuple[str, ...]
    need: Need
    why: Mapping[str, str]
    loads: Mapping[str, Sequence[str]]

    def __str__(self):
        need, specs = self.need, (self.spec, *self.others)
        said = [_said(measured.verdicts()[claim]) for claim in need.rests]
        lines = [
            self.spec,
            *_filled('for', need.title),
            *_filled('why', self.why[self.spec] or need.take),
            *_filled('use', use(self.spec)),
            *_filled('cost', _cost(self.spec)),
            *_filled('kernel', kernel(self.spec)),
            *_filled('also read by', ', '.join(self.loads[self.spec])),
        ]
        for spec in specs[1:]:
            known = [text for text in (self.why[spec], use(spec), _cost(spec)) if text]
            lines += _filled('or', f'{spec}. {" ".join(known)}'.strip())
        lines += [*_filled('limits', need.limits), *_filled('models', need.scale)]
        for text in said:
            lines += _filled('' if text != said[0] else 'claims', text)
        page = f'  docs/choosing.md#{need.anchor}'  # a line of its own, so that it is not cut
        return '\n'.join([*lines, *_filled('more', 'in the repository:'), page])

    __repr__ = __str__


@functools.cache
def all_needs() -> tuple[Need, ...]:
    """All advice, in the order of the page."""
    return tuple(_need(**fields) for fields in _content()['need'])


@functools.cache
def all_unmeasured() -> tuple[Unmeasured, ...]:
    """The reasons for which some answers have no advice, the first fitting one first."""
    return tuple(Unmeasured(**fields) for fields in _content()['unmeasured'])


def _content() -> Mapping[str, Any]:
    return tomllib.loads((_FOLDER / 'choosing.toml').read_text(encoding='utf-8'))


def _need(picks: Sequence[Mapping[str, Any]] = (), **fields: Any) -> Need:
    own = ('spec', 'why', 'loads')
    of_pick = lambda row: {k: row[k] for k in own if k in row}
    rest = lambda row: {k: v for k, v in row.items() if k not in own}
    return Need(picks=tuple(Pick(**of_pick(row), when=rest(row)) for row in picks), **fields)


@names_checked
def choose(
    data: str = 'text',
    *,
    checkpoint: bool = False,
    tuning: bool = True,
    factor: float = 1.0,
    needs: str = 'loss',
    memory: str = 'all',
    kernel: bool = False,
    loads: str = '',
    step: float = math.inf,
) -> Choice:
    """What to try first, as far as measured claims say so. They are those of small models, which
    were trained for minutes.

    Args:
      data: what the model reads: 'text', 'images', 'pictures in text', 'field', 'globe', 'points',
        'graph', 'tree', 'signal' or 'translation'.
      checkpoint: whether there is a trained model with rotary positions; else one is trained.
      tuning: whether such a model may be trained a little further; a new one is trained anyway.
      factor: the size at which the model is used, over the trained one, up to 64.
      needs: what it must do there: 'loss' keeps the loss, 'far context' lowers it by what is far
        away, 'retrieval' finds something in a long text; an encoder of text predicts 'hidden
        tokens', and a model may read 'streams'; 'state', 'lists', 'arithmetic' and 'numbers' are
        tasks of computation, 'speed' is that of decoding. Images may be 'finer' (more pixels of the
        same scene), 'larger' (more of the scene) or have 'shifts'. Fields may be asked for a
        'volume', 'means of pixels' or 'unknown places'.
      memory: that of decoding: 'all' keys may be kept, or it has to be 'constant'.
      kernel: whether a fused attention kernel of JAX has to serve it.
      loads: another library that has to read the trained model: 'transformers', 'gguf' or ''.
      step: the longest time of a train step, over that with `rope()`; methods that were not timed
        are left out if it is given.

    Raises:
      SpecError: an answer that does not exist, or answers for which there is no advice; says what
        was not measured, and names the answers with which there is one.

    Example:
      >>> choose(checkpoint=True, tuning=False, factor=4, needs='retrieval').spec
      'yarn(factor=4)'
    """
    answers: dict[str, Any] = dict(data=data, needs=needs, memory=memory, loads=loads)
    for name, choices in QUESTIONS.items():
        check_choice(f'choose: {name}', answers[name], choices)
    for name, flag in dict(checkpoint=checkpoint, tuning=tuning, kernel=kernel).items():
        check_flag(f'choose: {name}', flag)
    check_number('choose: factor', factor, above=0, most=LARGEST_FACTOR)
    if step != math.inf:
        check_number('choose: step', step, above=0)
    answers |= dict(checkpoint=checkpoint, tuning=tuning or not checkpoint, factor=factor)
    answers |= dict(kernel=kernel, step=step)
    for need, picks in _found(answers):
        specs = {_written(pick.spec, factor): pick for pick in picks}
        first, *others = specs
        why = {spec: pick.why for spec, pick in specs.items()}
        return Choice(first, tuple(others), need, why, {s: pick.loads for s, pick in specs.items()})
    raise SpecError(_without_advice(answers))


def _found(answers: Mapping[str, Any]) -> Iterator[tuple[Need, list[Pick]]]:
    for need in all_needs():
        meant = _means({**PLAIN, **need.when}, answers)
        if picks := [pick for pick in need.picks if meant and _suits(pick, answers)]:
            yield need, picks


def _means(when: Mapping[str, Any], answers: Mapping[str, Any]) -> bool:
    def same(name, wanted):
        if name == 'factor':
            return wanted[0] < answers[name] <= wanted[1]
        return answers[name] in wanted if isinstance(wanted, list) else answers[name] == wanted

    return all(same(name, wanted) for name, wanted in when.items())


def _suits(pick: Pick, answers: Mapping[str, Any]) -> bool:
    spec = _written(pick.spec, answers['factor'])
    # What needs no more than constant memory serves both answers.
    when = {name: wanted for name, wanted in pick.when.items() if name != 'memory'}
    return (
        _means(when, answers)
        and (answers['memory'] == 'all' or pick.when.get('memory') == 'constant')
        and (not answers['loads'] or answers['loads'] in pick.loads)
        and (not answers['kernel'] or kernel(spec) == _OF_JAX)
        and (answers['step'] == math.inf or _step(spec) <= answers['step'])
    )


def _written(spec: str, factor: float) -> str:
    return spec.format(factor=f'{factor:g}', twice=max(2, math.ceil(2 * factor)))


def _without_advice(answers: Mapping[str, Any]) -> str:
    """What was not measured, and which answers could be changed so that there is an advice."""
    reason = [one.says for one in all_unmeasured() if _means(one.when, answers)][:1]
    works = [f'{name}={value!r}' for name, value in _changes(answers)]
    if not works:  # two answers have to change
        pairs = (
            f'{name}={value!r} and {change}'
            for name, value in _every_change(answers)
            for change in map('{0[0]}={0[1]!r}'.format, _changes({**answers, name: value}))
        )
        works = list(itertools.islice(pairs, 1))
    usual = dict(memory='all', loads='', kernel=False, step=math.inf, checkpoint=False, tuning=True)
    asked = ', '.join(f'{k}={v!r}' for k, v in answers.items() if v != usual.get(k))
    return f'choose: no advice for {": ".join([asked, *reason])}; there is one with ' + (
        ' or '.join(works) if works else 'several other answers (docs/choosing.md)'
    )


def _changes(answers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The single answers with which there is an advice; of the factors only the nearest one."""
    found = [(k, v) for k, v in _every_change(answers) if any(_found({**answers, k: v}))]
    factors = [change for change in found if change[0] == 'factor']
    return [change for change in found if change not in factors[1:]]


def _every_change(answers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Other single answers about the same data, the nearest factors first."""
    distance = lambda factor: abs(math.log(factor / answers['factor']))
    others = {name: list(choices) for name, choices in QUESTIONS.items() if name != 'data'}
    others |= dict(checkpoint=[False, True])
    others |= dict(tuning=[False, True] if answers['checkpoint'] else [])
    others |= dict(factor=sorted([1, 2, 4, 8, 16, 64], key=distance))
    others |= dict(kernel=[False], step=[math.inf])
    return ((k, v) for k, values in others.items() for v in values if v != answers[k])


_OF_JAX, _OURS = 'of JAX', 'of this library'


def example(spec: str) -> str:
    """The spec string of a `Pick`, with a factor of 4."""
    return _written(spec, 4)


@functools.cache
def keys_of(spec: str) -> tuple[str, ...]:
    """The keys of all methods in the spec string of a `Pick`."""
    return tuple(entry.key for entry in entries_of(parse(example(spec), KINDS)))


@functools.cache
def kernel(spec: str) -> str:
    """Whose fused kernel computes the attention; '' for what is no encoding of a sequence."""
    found = list(entries_of(parse(spec, KINDS)))
    if found[0].kind not in ('encoding', 'frequencies', 'extension'):
        return ''
    fused = lambda entry: entry.kind == 'frequencies' or (entry.card and entry.card.promises.fused)
    return _OF_JAX if all(map(fused, found)) else _OURS


def use(spec: str) -> str:
    """How a model takes what `pj.Attention` does not take as it is: a layer of its own, or an
    extension of a trained model; '' for the others.
    """
    first = next(iter(entries_of(parse(spec, KINDS))))
    if first.kind == 'mixer':
        return (
            'A layer of a model in place of attention, which `pj.Attention` does not take: name it '
            'in `pattern` of a `TransformerConfig` (docs/usage.md).'
        )
    if first.kind == 'frequencies' or any(e.key == first.key for e in entries('extension')):
        return f"Of a trained model: `model.extend('{spec}')`."
    return ''


def _costs_of(spec: str) -> Mapping[str, str]:
    """The row of the methods in a spec string or of a key; empty if one of them is not timed."""
    return measured.cost((spec,) if spec.isidentifier() else keys_of(spec))


def cost_cells(spec: str) -> tuple[str, str, str]:
    """See `measured.cells`, of the methods in a spec string or of a key."""
    return measured.cells(_costs_of(spec))


def _cost(spec: str) -> str:
    return measured.cost_text(_costs_of(spec))


def _said(found: measured.Verdict) -> str:
    return f'{found.claim} {found.verdict} ({found.key}): {found.effect}. {found.compared}'


def _step(spec: str) -> float:
    """The time of a train step over that with `rope()`."""
    row = _costs_of(spec)
    if not row:
        return math.inf
    same = lambda other: other['keys'] == 'rope' and other['base'] == row['base']
    rope = [float(other['step']) for other in measured.costs() if same(other)]
    return float(row['step']) / (rope[0] if rope else 1.0)


def _filled(name: str, text: str) -> list[str]:
    """Lines of a screen; links of the page become their text with the file of the repository."""
    text = re.sub(r'\[([^]]+)\]\(#', r'[\1](choosing.md#', text)
    return filled(name, re.sub(r'\[([^]]+)\]\(([^)]+)\)', r'\1 (docs/\2)', text), column=14)

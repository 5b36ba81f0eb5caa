"""The demands of a task on a model: the sizes that it sets, what a step of training reads and sums,
and which checks its runs pass. There is one class for each kind of task; `sizes.problem_of`
chooses it.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from posenc_jax.lab.config import answers, fields, protocols, settings
from posenc_jax.lab.decoding.recurrence import read_segments
from posenc_jax.lab.model.inputs import (
    auxiliary_loss,
    encoded_source,
    inputs_of,
    source_of,
    tokens_of,
)
from posenc_jax.lab.model.losses import target_losses
from posenc_jax.lab.model.pyramid import pixels_per_patch
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.protocol.errors import SpecError

if TYPE_CHECKING:
    from posenc_jax.lab.runs.run import Run

SEED = zlib.crc32(b'eval')  # of the examples of evaluations
Sums = dict[str, Float[Array, '']]
# Name of a number of a validation -> the sums that it is the ratio of.
RATIOS = {
    'loss': ('loss', 'targets'),
    'accuracy': ('correct', 'targets'),
    'exact': ('solved', 'rows'),
    'bit_errors': ('wrong_bits', 'bits'),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with tokens in rows, whose answers are tokens.

    Attributes:
      task: the task.
      spec: its spec string, for messages.
    """

    kind: ClassVar[str] = 'answers'  # what `evaluate.run` measures
    axes: ClassVar[tuple[str, ...]] = ('batch', 'sequence')  # the roles of the axes of a batch
    alone: ClassVar[bool] = False  # whether one device evaluates, however many there are

    task: Any
    spec: str

    def length(self, config: ConfigDict) -> int | tuple[int, int]:
        """The length, or the range (lowest, highest) of lengths, that training draws from."""
        low, high = config.train.min_length, config.train.length
        return high if self.task.one_length else (low, high)

    def width(self, config: ConfigDict) -> int:
        """The width of a training batch.

        Raises:
          ValueError: the task does not have the length; the message names the fields that set it.
        """
        try:
            return settings.width_of(self.task, self.length(config))
        except ValueError as error:
            given = f'train.length={config.train.length}'
            if not self.task.one_length:
                given += f', train.min_length={config.train.min_length}'
            raise ValueError(f'{given}: {error}') from error

    def shape(self, config: ConfigDict) -> dict[str, Any]:
        """The sizes of the model that the task sets, without those that are 0.

        Returns:
          `vocab_size`, token ids, and `width`, tokens of a training row; `output_size`, target ids
          where they are others; `pooled`, 1 if the class of the row is predicted; `channels`,
          numbers of a vector or of a pixel; `source_size` and `source_width`, the first two of the
          source. For points see `FieldConfig`.

        Raises:
          ValueError: a kind of model that cannot do the task, or a length that it does not have.
        """
        task, width = self.task, self.width(config)
        self.check_source(config.model.kind)
        if task.is_image:
            if not config.model.patch:
                raise SpecError(f'model.patch is 0, but {self.spec} has images to cut; use e.g. 4')
            side = pixels_per_patch(config.model.patch, config.model.lower)
            width = max(1, width // side**2) + (config.model.pool == 'token')
        further = dict(
            output_size=task.output_size if task.output_size != task.vocab_size else 0,
            pooled=int(task.predicts == 'class'),
            channels=task.channels,
            source_size=task.source_size,
            source_width=task.source_width(self.length(config)) if task.source_size else 0,
        )
        return {'vocab_size': task.vocab_size, 'width': width} | {
            name: size for name, size in further.items() if size
        }

    def check_source(self, kind: str) -> None:
        """Raises SpecError unless a kind of model reads a source exactly if the task has one."""
        if kind == 'encoder_decoder':
            instead = 'decoder' if self.task.predicts == 'next' else 'encoder'
            raise SpecError(
                f"model.kind is 'encoder_decoder', but {self.spec} has no source to read; use "
                f'{instead!r}, or a task with a source'
            )

    def check_training(self, run: 'Run') -> None:
        """Checks that the model of a run can be trained on its task.

        Raises:
          ValueError: it cannot; the message says what stands against it.
        """
        settings.check_kind(run.model, self.task, self.spec)
        if run.config.train.segment:
            settings.check_segments(run.model)
        length = run.config.train.length
        settings.check_read(run.model, self.task, length, run.cfg.train_len, train=True)

    def check_evaluation(self, run: 'Run') -> None:
        """Checks that a run can be evaluated as its config says: fields, extension, text,
        causality, and lengths that the encoding reaches. A text is read, to know how long it is.

        Raises:
          ValueError: a setting does not fit; the message says what was expected and names the
            nearest valid choice.
        """
        config, cfg, task = run.config, run.cfg, self.task
        fields.check_evaluation(config.eval)
        if cfg.kind == 'field':
            raise SpecError(f'the model is a field, which reads points; {self.spec} has none')
        answers.check(config, task)
        for name, ours, theirs in (
            ('token ids', cfg.vocab_size, task.vocab_size),
            ('channels', cfg.channels, task.channels),
            ('target ids', cfg.output_size, task.output_size),
            ('token ids of the source', cfg.source_size, task.source_size),
        ):
            if ours != theirs:
                raise SpecError(f'the model was trained on {ours} {name}; {self.spec} has {theirs}')
        self.check_split(run)
        model = run.extended_model
        settings.check_kind(model, task, self.spec)
        if not config.eval.decode:
            answers.check_one_pass(model, task)
        self.check_lengths(run, lambda length: self.check_length(run, length))

    def check_split(self, run: 'Run') -> None:
        """Raises ValueError if the split of an evaluation cannot be read as its config says."""
        if run.config.eval.split == 'train':
            raise SpecError("eval.split is 'train'; tasks are evaluated on 'validation' or 'test'")

    def check_lengths(self, run: 'Run', check: Callable[[int], None]) -> None:
        """Calls `check` with every length of an evaluation. The message of its first ValueError
        names the lengths that pass.
        """
        problems, lengths = {}, settings.lengths_of(run.config)
        for length in lengths:
            try:
                check(length)
            except ValueError as error:
                problems[length] = error
        if problems:
            reached = ','.join(str(length) for length in lengths if length not in problems)
            remedy = f'; lengths that fit: --config.eval.lengths={reached}' if reached else ''
            length, error = next(iter(problems.items()))
            raise SpecError(f'at length {length}: {error}{remedy}') from error

    def check_length(self, run: 'Run', length: int) -> None:
        """Raises ValueError if the extended model of a run does not read examples of a length."""
        asked, width = run.config.eval, settings.width_of(self.task, length)
        self.check_examples(asked, length, width)
        settings.check_read(run.extended_model, self.task, length, width, split=asked.split)

    def check_examples(self, asked: ConfigDict, length: int, width: int) -> None:
        """Raises ValueError if there are no examples of a length, or they do not fit in memory."""
        # A task that reads a text refuses windows that are longer than the split.
        examples = self.task.dataset(length=length, batch_size=1, seed=0, split=asked.split)
        if asked.decode:
            answers.check_decodable(cast('dict[str, Any]', examples[0]))
        settings.check_memory(f'eval.samples={asked.samples} rows of', asked.samples, width)

    def read(self, model: Any, batch: dict[str, Array], train: ConfigDict, key=None, step=None):
        """Logits of a batch, [B, T, V], or [B, 1, V] for a class, in one pass or segment by segment
        with a memory (`train.segment`). With a key the training rule applies (dropout, random
        positions), without it the evaluation rule. A field gives the outputs of its points, [B, V];
        `step` tells it how far training is.
        """
        if not train.segment:
            training = key is not None
            source = encoded_source(model, source_of(batch), key, training)
            inputs, tok = inputs_of(batch), tokens_of(batch)
            return model(inputs, tok, key=key, train=training, source=source)
        memory = dict(segment=train.segment, length=train.memory, tok=tokens_of(batch))
        return read_segments(model, batch['tokens'], key=key, **memory)

    # (outputs [B, *T, V], targets [B, *T]) -> their losses and log-partitions, [B, *T]
    losses = staticmethod(target_losses)
    # (model, batch, key) -> the sum of the terms that encodings add to the loss, or None
    auxiliary_loss = staticmethod(auxiliary_loss)

    def sums(self, losses, outputs, targets, scored: Bool[Array, 'B *T']) -> Sums:
        """Sums over the scored targets of a batch.

        Returns:
          `loss`, number of `correct` targets, number of scored `targets`, `solved` rows (whose
          targets are all correct), and `rows` with targets. For points see `FieldProblem.sums`.
        """
        correct = (jnp.argmax(outputs, axis=-1) == targets) & scored
        rows = scored.any(axis=1)
        return {
            'loss': jnp.where(scored, losses, 0).sum(),
            'correct': correct.sum(dtype=jnp.float32),
            'targets': scored.sum(dtype=jnp.float32),
            'solved': (rows & (correct == scored).all(axis=1)).sum(dtype=jnp.float32),
            'rows': rows.sum(dtype=jnp.float32),
        }

    def means(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a validation from its sums.

        Example:
          >>> Problem(None, '').means({'loss': 3.0, 'targets': 2.0, 'correct': 1.0})
          {'loss': 1.5, 'accuracy': 0.5}
        """
        return {
            name: totals[top] / totals[bottom]
            for name, (top, bottom) in RATIOS.items()
            if top in totals
        }

    def step_bytes(self, cfg: Any, tokens: int) -> int:
        """The least that a step on so many tokens needs beside the state: the input of every layer
        and the logits.
        """
        logits = 0 if cfg.pool else 4 * cfg.output_size
        return tokens * (cfg.layers * cfg.width * jnp.dtype(cfg.dtype).itemsize + logits)

    def prompt(self, run: 'Run') -> np.ndarray:
        """A row of the validation split, on which an extension may be fitted: an example at the
        first evaluation length.
        """
        rng, length = batch_rng(SEED, 'validation', 0), settings.lengths_of(run.config)[0]
        return self.task.for_evaluation().sample(rng, 1, length)['tokens']


class TextProblem(Problem):
    """A text, read in windows."""

    kind = 'text'

    def check_split(self, run):
        asked, cfg = run.config.eval, run.cfg
        targets = len(self.task.tokens(asked.split)) - 1
        rows = f'eval.batch={asked.batch} rows of'
        settings.check_memory(rows, asked.batch, cfg.train_len, 12 + 4 * cfg.width)
        lengths, names = settings.lengths_of(run.config), tuple(asked.protocols)
        protocols.plan(targets, lengths, names, tokens=asked.tokens, stride=asked.stride)

    def check_examples(self, asked, length, width):
        """Nothing: `check_split` has looked at the text."""

    def means(self, totals):
        """Without the share of solved rows, since a stretch of text has no answer."""
        return super().means({name: total for name, total in totals.items() if name != 'solved'})

    def prompt(self, run):
        """The first `train_len` tokens of the validation text."""
        return np.asarray(self.task.tokens('validation')[: run.cfg.train_len])[None]


class ClassProblem(Problem):
    """Images, clouds of points or graphs, which have classes and can be drawn."""

    kind = 'classes'
    alone = True


class SourceProblem(Problem):
    """A source, which an encoder-decoder reads."""

    kind = 'source'

    def check_source(self, kind):
        if kind != 'encoder_decoder':
            raise SpecError(
                f'model.kind is {kind!r}, but {self.spec} has a source to read; use '
                "'encoder_decoder'"
            )

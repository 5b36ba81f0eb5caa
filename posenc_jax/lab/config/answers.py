"""Checks of the answers of a task for an evaluation: their depth in the text, and to be decoded."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.tasks import Task
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.errors import SpecError, quoted
from posenc_jax.protocol.registry import entries


def check(config: ConfigDict, task: Task) -> None:
    """Checks that a task has the depth that `eval.depths` sets, and answers behind a prompt if
    `eval.decode` asks to decode them.

    Raises:
      SpecError: it has no depth, and the message names the tasks that have one; or its answers
        cannot be decoded.
    """
    fields = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
    if config.eval.depths and 'depth' not in {field.name for field in fields}:
        having = ', '.join(entry.key for entry in entries('task') if 'depth' in entry.parameters)
        raise SpecError(
            f'eval.depths is {quoted(config.eval.depths)}, but {config.task} has no depth; tasks '
            f'with one: {having}'
        )
    if not config.eval.decode:
        return
    if task.is_language or task.predicts != 'next':
        kinds = {'next': 'a whole text', 'class': 'a class', 'here': "at its place ('here')"}
        what = kinds.get(task.predicts, task.predicts)
        raise SpecError(
            f'eval.decode=True is for tasks with an answer behind a prompt; {config.task} predicts '
            f'{what}; use eval.decode=False'
        )
    if config.eval.positions == 'sampled':
        raise SpecError(
            'eval.decode=True decodes with the evaluation rule of the encoding; use '
            "eval.positions='first'"
        )


def check_one_pass(model: Transformer, task: Task) -> None:
    """Checks that one pass over prompt and answer reads as decoding does.

    Raises:
      SpecError: an encoding says why it does not, as its attribute `unlike_decoding`.
    """
    if task.is_language or task.predicts != 'next':
        return
    for encoding in model.encodings:
        for part in parts_of(encoding):
            if why := getattr(part, 'unlike_decoding', ''):
                raise SpecError(
                    f'{why}, so one pass over prompt and answer is not what decoding reads; use '
                    'eval.decode=True'
                )


def check_decodable(batch: Mapping[str, np.ndarray]) -> None:
    """Checks that the answers of a batch can be decoded behind a prompt.

    Raises:
      SpecError: rows have positions of their own or documents, or an answer is not one run of
        tokens.
    """
    if own := sorted({'positions', 'segment'} & batch.keys()):
        raise SpecError(
            'eval.decode=True decodes answers behind a prompt alone, and the rows of this task '
            f'have {", ".join(own)}; use eval.decode=False'
        )
    mask = batch['loss_mask'] > 0
    count, first = mask.sum(axis=1), mask.argmax(axis=1)
    end = mask.shape[1] - mask[:, ::-1].argmax(axis=1)
    if broken := np.flatnonzero((count == 0) | (end - first != count)).tolist():
        row = broken[0]
        raise SpecError(
            'eval.decode=True needs answers that are one run of tokens, and this task scores '
            f'{count[row]} tokens between {first[row]} and {end[row]} of a row; use '
            'eval.decode=False'
        )

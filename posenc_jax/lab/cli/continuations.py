"""The ways in which `generate` writes: texts are continued, sources translated, masks filled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posenc_jax.base.memory import device_memory, readable
from posenc_jax.lab.config import settings
from posenc_jax.lab.decoding.constant_cache import ConstantCache
from posenc_jax.lab.decoding.generate import pad_left
from posenc_jax.lab.decoding.recomputed import Recomputed
from posenc_jax.lab.evaluate.generator import generator
from posenc_jax.lab.evaluate.scoring import first_choices
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.inputs import source_of
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.pretrained import is_pretrained
from posenc_jax.lab.pretrained.sources import open_source
from posenc_jax.lab.pretrained.special_tokens import special_ids
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.tasks.language.masked_text import MASK
from posenc_jax.layer.sharding import whole_rows
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens


def writer(task: Any) -> Callable[..., list[list[str]]] | None:
    """What continues, translates or fills texts of a task; None for a task without texts."""
    if hasattr(task, 'source_batch'):
        return _translated
    if hasattr(task, 'encode'):
        return _continued if task.is_language else _filled
    return None


def _continued(run: Run, prompts, **given) -> list[list[str]]:
    tokens, samples, constant_cache = given['tokens'], given['samples'], given['constant_cache']
    encoded = [
        run.task.vocabulary.encode(_in_chat(run, prompt).encode(), begins=False)
        if given['chat']
        else run.task.encode(prompt)
        for prompt in prompts
    ]
    capacity = max(map(len, encoded)) + (constant_cache or tokens)
    _check_memory(run.cfg, len(prompts) * samples, capacity, given['mesh'])
    ids, valid = pad_left([row for row in encoded for _ in range(samples)])
    decoding = Recomputed() if given['recompute'] else None
    if constant_cache:
        decoding = ConstantCache(constant_cache)
    model = run.extended_model
    if decoding is not None:
        decoding.check(model)
    try:
        settings.check_call(model, ids.shape[1] + tokens)
    except ValueError as error:
        raise SpecError(
            f'a prompt of {ids.shape[1]} tokens and {tokens} new ones: {error}'
        ) from error
    ends = _ends(run)
    model = run.extended(run.load(given['mesh'])[0])
    more = dict(valid=None if valid.all() else valid, eos=ends[0] if ends else None)
    out = _drawn(model, ids, given, **more, decoding=decoding)
    return _grouped([run.task.decode(_until(row, ends)) for row in out], samples)


def _translated(run: Run, prompts, **given) -> list[list[str]]:
    samples, tokens, task = given['samples'], given['tokens'], run.task
    batch = task.source_batch([prompt for prompt in prompts for _ in range(samples)])
    rows, width = batch['source'].shape
    _check_memory(run.cfg, rows, width + 1 + tokens, given['mesh'])
    components = batch['source_positions'].shape[2:] if task.alignments else None
    model = run.extended_model
    try:
        settings.check_call(model, 1 + tokens, None, (width, components))
    except ValueError as error:
        raise SpecError(f'a prompt of {width} words and {tokens} new ones: {error}') from error
    model = run.extended(run.load(given['mesh'])[0])
    begin = np.full((rows, 1), task.begin, np.int32)
    out = _drawn(model, begin, given, eos=task.end, source=source_of(batch))
    return _grouped([task.decode(_until(row, (task.end,))) for row in out], samples)


def _filled(run: Run, prompts, *, temperature, mesh, **_) -> list[list[str]]:
    task = run.task
    if temperature:
        raise SpecError(
            f'masks get the most probable token; temperature must be 0, got {temperature}'
        )
    rows = [task.encode(prompt) for prompt in prompts]
    ids, valid = (a[:, ::-1] for a in pad_left([row[::-1] for row in rows]))
    masked = ids == task.output_size
    if not masked.any(axis=1).all():
        raise SpecError(
            f'{run.directory} was trained on {run.config.task}, which fills masks; expected '
            f'{MASK} in every prompt'
        )
    _check_memory(run.cfg, *ids.shape, mesh)
    settings.check_call(run.extended_model, ids.shape[1])
    choices = first_choices(run.extended(run.load(mesh)[0]), mesh)
    filled = np.where(masked, choices(ids, Tokens.of(valid=valid)), ids)
    begin = len(task.encode(''))
    return [[task.decode(row[own][begin:])] for row, own in zip(filled, valid)]


def _drawn(model: Transformer, ids, given: Mapping[str, Any], **more) -> np.ndarray:
    """The new tokens behind `ids` by the arguments of `continue_text`."""
    names = ('temperature', 'top_k', 'top_p')
    key = None if given['temperature'] == 0 else jax.random.key(given['seed'])
    asked = {name: given[name] for name in names}
    new_tokens = generator(model, given['mesh'])
    return new_tokens(ids, max_new_tokens=given['tokens'], key=key, **asked, **more)


def _grouped(texts: list[str], samples: int) -> list[list[str]]:
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def _until(row, ends):
    found = np.flatnonzero(np.isin(row, ends))
    return row[: found[0]] if len(found) else row


def _check_memory(
    cfg: TransformerConfig, rows: int, capacity: int, mesh: Mesh | None = None
) -> None:
    """Refuses a cache of keys and values that does not fit the memory of the devices, among which
    every axis of a mesh cuts it.
    """
    devices = 1 if mesh is None else mesh.size
    each = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * np.dtype(cfg.dtype).itemsize
    needed = whole_rows(mesh, rows) * capacity * each // devices
    if needed > (limit := device_memory()):
        here = 'the device' if devices == 1 else f'each of {devices} devices'
        raise SpecError(
            f'a cache of {rows} rows of {capacity} tokens would take {readable(needed)}, {here} '
            f'has {readable(limit)}; ask for fewer tokens or samples'
        )


def _public(run: Run) -> Any:
    """The public checkpoint whose model or tokenizer the run uses; None if there is none."""
    path = run.directory if is_pretrained(run.directory) else run.config.data.tokenizer
    return open_source(path) if path else None


def _in_chat(run: Run, prompt: str) -> str:
    """A prompt in the chat template of the public checkpoint."""
    if (source := _public(run)) is None:
        raise SpecError(
            f'chat needs a chat template, and {run.directory} was trained on bytes; expected a '
            'public checkpoint, or a run with the tokenizer of one'
        )
    if (template := source.chat_template()) is None:
        raise SpecError(
            f'{source.path} has no chat template; expected chat_template in '
            'tokenizer_config.json, a file chat_template.jinja, or tokenizer.chat_template in '
            'GGUF; leave out chat to continue the prompt as it is'
        )
    return template.render([{'role': 'user', 'content': prompt}])


def _ends(run: Run) -> tuple[int, ...]:
    """The ids of the end-of-text tokens of that checkpoint; () if there is none. A text ends at the
    first one that occurs.
    """
    source = _public(run)
    config = source.config if source else {}
    return special_ids('eos_token_id', config, config)

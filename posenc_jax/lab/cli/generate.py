"""Continues text with a training run or a public checkpoint, and prints every prompt followed by
its continuation. A run of translation() translates its prompts, and a run of masked_text() fills
the places `[MASK]` of its prompts.

    python -m posenc_jax.lab.cli.generate --run=runs/rope --prompt='The ' [--tokens=64]
        [--temperature=0.8] [--samples=3] [--chat]

--run takes the same runs as eval.py, also 'RUN | EXTENSION'. --prompt may be repeated: all prompts
are one batch, padded on the left. A continuation ends at the end-of-text token of the checkpoint,
if it has one. With --chat the prompts are what a user says: they are written into the chat template
of the checkpoint, and the answers are printed alone. `--config.NAME=VALUE` changes a field of the
config, as in eval.py; `--config.mesh.tensor=4` shares the heads among four devices. Where the mesh
of the config is the default, one device generates. Several processes generate together, as in
eval.py.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab.cli.continuations import writer
from posenc_jax.lab.cluster.cluster import ERRORS, failed, together
from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.run_parser import RunParser
from posenc_jax.lab.files.command import read_letters
from posenc_jax.lab.runs.prepare import UNASKED, prepare
from posenc_jax.protocol.errors import SpecError, check_number


def continue_text(
    run: str,
    prompts: Sequence[str],
    *,
    tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    samples: int = 1,
    constant_cache: int | None = None,
    recompute: bool = False,
    chat: bool = False,
    overrides: Mapping[str, Any] | None = None,
    trust_imports: bool = False,
) -> list[list[str]]:
    """Continues each prompt `samples` times. Returns for each prompt the list of its continuations,
    which end before the end-of-text token.

    A run of `translation()` gives translations of the prompts, which are sources such as 'v1 m2
    n4'. A run of `masked_text()` gives the prompts with the most probable token, each chosen on its
    own, in every place `[MASK]`.

    Args:
      run: a run directory or public checkpoint; 'RUN | EXTENSION' applies a context extension.
      prompts: texts, encoded by the task or tokenizer of the run.
      tokens: largest number of new tokens.
      temperature, top_k, top_p: as for `generate`.
      seed: of the random key.
      samples: continuations of each prompt; more than one needs a positive temperature.
      constant_cache: for a model of `lm_infinite` layers, caches only the tokens that it can still
        see, with room for this number of new tokens; None caches all tokens.
      recompute: reads the text again after every step in which its length changes the frequencies
        of the encoding, so that each token equals that of a full pass. `longrope` with two lists
        does so by default.
      chat: each prompt is what a user says, and is written into the chat template of the public
        checkpoint that the run is or whose tokenizer it uses.
      overrides: as for `evaluate`, e.g. {'extend': 'yarn(factor=2.0)'}. The devices of the mesh of
        the config share the work; one device does it where that mesh is the default.
      trust_imports: whether code that the run brings may be executed, see `run.trust`.

    Raises:
      FileNotFoundError: no such run.
      UntrustedError: the run brings code, and `trust_imports` is False.
      ValueError: a run that was not trained on text, an empty prompt, a number out of range, an
        argument that this kind of run has no use for, or more tokens than the encoding has
        positions or the device has memory for.

    Example, for a run that exists:
    `continue_text('runs/rope', ['The '], tokens=16)[0][0]` is the first continuation.
    """
    given = dict(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    given |= dict(samples=samples, constant_cache=constant_cache, recompute=recompute, chat=chat)
    return _texts(run, prompts, overrides or {}, trust_imports, **given)[0]


def _texts(run, prompts, overrides, trust_imports, **given) -> tuple[list[list[str]], bool]:
    """The result of `continue_text`, and whether its texts follow their prompts."""
    tokens, samples, temperature = given['tokens'], given['samples'], given['temperature']
    constant_cache, recompute = given['constant_cache'], given['recompute']
    if tokens < 1 or samples < 1:
        raise SpecError(f'tokens and samples must be at least 1, got {tokens} and {samples}')
    check_number('temperature', temperature, least=0)
    if constant_cache is not None and constant_cache < 1:
        raise SpecError(
            f'constant_cache, the room for new tokens, must be at least 1, got {constant_cache}'
        )
    if constant_cache is not None and recompute:
        raise SpecError(
            'constant_cache forgets the text that recompute would read again; leave out one of '
            'the two'
        )
    if samples > 1 and temperature == 0:
        raise SpecError(
            f'temperature=0 makes the {samples} samples equal; give a positive temperature'
        )
    if not prompts or not all(prompts):
        raise SpecError('a prompt is empty; expected at least one character')
    run = prepare(run, {**overrides, **UNASKED}, trust_imports=trust_imports)
    sizes = [dict(config.mesh) for config in (run.config, defaults.get_config())]
    several = run.asks_for_mesh or sizes[0] != sizes[1]
    given['mesh'] = run.mesh if several or jax.process_count() > 1 else None
    if (write := writer(run.task)) is None:
        found = {'next': 'not text', 'class': 'one class for a row'}.get(
            run.task.predicts, 'answers at given places'
        )
        raise SpecError(
            f'{run.directory} was trained on {run.config.task}, which is {found}; expected a '
            'run of language(), translation() or masked_text()'
        )
    if not run.task.is_language and (constant_cache or recompute or given['chat']):
        raise SpecError(
            'constant_cache, recompute and chat are for runs of language(); '
            f'{run.directory} was trained on {run.config.task}'
        )
    return write(run, prompts, **given), run.task.is_language and not given['chat']


OPTIONS = {
    'run': dict(required=True, metavar='DIR', help='run directory or public checkpoint'),
    'extend': dict(metavar='SPEC', help='context extension, e.g. yarn(factor=2.0)'),
    'prompt': dict(action='append', default=[], metavar='TEXT', help='may be repeated'),
    'prompt_file': dict(
        type=pathlib.Path,
        metavar='FILE',
        help='a file with one more prompt; a final line break is left out',
    ),
    'tokens': dict(type=int, default=64, metavar='N', help='new tokens at most'),
    'temperature': dict(
        type=float, default=0.0, metavar='T', help='0 takes the most probable token'
    ),
    'top_k': dict(type=int, metavar='K'),
    'top_p': dict(type=float, metavar='P'),
    'seed': dict(type=int, default=0, metavar='N'),
    'samples': dict(type=int, default=1, metavar='N', help='continuations of each prompt'),
    'constant_cache': dict(
        type=int, metavar='ROOM', help='cache only what lm_infinite sees, and ROOM new tokens'
    ),
    'recompute': dict(
        action='store_true', help='read the text again where its length changes frequencies'
    ),
    'chat': dict(
        action='store_true', help='write each prompt into the chat template of the checkpoint'
    ),
}


def arguments(argv: Sequence[str] | None) -> dict[str, Any]:
    """The arguments of `continue_text` that a command line gives."""
    parser = RunParser(program('python -m posenc_jax.lab.cli.generate'), description=__doc__)
    parser.add_options(OPTIONS)
    known, processes, overrides = parser.read(argv)
    given = vars(known)
    file, extend = given.pop('prompt_file'), given.pop('extend')
    try:
        prompts = [*given.pop('prompt'), *([read_letters(file).removesuffix('\n')] if file else [])]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not prompts:
        parser.error('expected --prompt=TEXT or --prompt_file=FILE')
    return {
        **given,
        'processes': processes,
        'prompts': prompts,
        'overrides': overrides | ({'extend': extend} if extend else {}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    prompts = asked.pop('prompts')
    try:
        stopping = lambda: 'stopping; nothing is printed before the last token'
        with interrupts.announced(stopping), together(*asked.pop('processes')) as first:
            found, follow = _texts(asked.pop('run'), prompts, asked.pop('overrides'), **asked)
    except ERRORS as error:
        return failed('generate', error)
    texts = [
        prompt + text if follow else text
        for prompt, texts in zip(prompts, found, strict=True)
        for text in texts
    ]
    if first:
        print('\n---\n'.join(texts))
    return 0


if __name__ == '__main__':
    sys.exit(interrupts.run('generate', main))

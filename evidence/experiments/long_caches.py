"""What smaller caches cost a public model on long text: DuoAttention and LM-Infinite.

Command:   python -m evidence.experiments long_caches --file FILE --text 'text:FILE.txt'
           [--length 32768] [--extend 'yarn(factor=4.0)']
Time:      with --depths 0 0.5 --passkeys 8192 an hour on two CPU cores with other jobs running (48
           minutes of processor time), of which the gates take 5 minutes; 2600 MiB of memory
Number:    SmolLM2-135M-Instruct, perplexity at 23,170 to 32,767 tokens of an essay: every key 26.2,
           half of the heads streaming 28.9 (random gates 36.0), lm_infinite 23.3; see
           docs/results/caches.md
Measured:  perplexity by position in one pass over the first LENGTH tokens, and passkeys by depth at
           each length of --passkeys. There are three models: the model with its extension and every
           key; the same with half of its key heads streaming (`deploy`); and the model with
           LM-Infinite in place of the extension. The streaming heads are chosen by gates that are
           trained on passkeys in --gate-length tokens, or at random. Gates are kept in
           WORKDIR/gates.json and not trained again; gates of other settings are refused.
Results:   WORKDIR/text, WORKDIR/passkeys.
Paper:     Xiao et al. (arXiv 2410.10819): half of the heads lose nothing; Han et al. (arXiv
           2308.16137): fluent to any length.
"""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from evidence.experiments.runs import kept
from evidence.experiments.tables import report
from posenc_jax.lab.decoding.duo_attention import deploy, retrieval_heads
from posenc_jax.lab.evaluate.run import measure
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.train.duo_gates import train_gates


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--file', required=True, help='a public checkpoint')
    parser.add_argument('--text', required=True, help="config.data.dataset, e.g. 'text:book.txt'")
    parser.add_argument('--extend', default='yarn(factor=4.0)')
    parser.add_argument('--length', type=int, default=32768)
    parser.add_argument('--passkeys', type=int, nargs='+', default=[4096, 16384])
    parser.add_argument('--depths', type=float, nargs='+', default=[0.0, 0.5, 0.75])
    parser.add_argument('--samples', type=int, default=1, help='passkeys of each length and depth')
    parser.add_argument('--gate-steps', type=int, default=60)
    parser.add_argument('--gate-length', type=int, default=768)
    parser.add_argument(
        '--sparsity', type=float, default=0.5, help='share of key heads that stream'
    )
    parser.add_argument('--sink', type=int, default=64)
    parser.add_argument('--recent', type=int, default=256)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/long_caches')
    options = parser.parse_args(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)

    shared = {'eval.batch': 1, 'extend': options.extend}
    text = {
        **shared,
        'data.dataset': options.text,
        'eval.split': 'train',
        'eval.protocols': ('per_position',),
    }
    text |= {'eval.lengths': (options.length,), 'eval.tokens': options.length, 'eval.buckets': 14}
    passkeys = {**shared, 'task': 'passkey_text()', 'eval.lengths': tuple(options.passkeys)}
    passkeys |= {'eval.depths': tuple(options.depths), 'eval.samples': options.samples}
    jobs = {'text': prepare(options.file, text), 'passkeys': prepare(options.file, passkeys)}
    model, _ = jobs['text'].load()
    full = jobs['text'].extended(model)

    sizes = {'sink': options.sink, 'recent': options.recent}

    def trained():
        examples = jobs['passkeys'].task.dataset(length=options.gate_length, batch_size=1, seed=0)
        gates, losses = train_gates(
            full, batch_iterator(examples), steps=options.gate_steps, **sizes
        )
        print(f'loss of the gates: {np.asarray(losses)[[0, -1]]}')
        return np.asarray(gates).round(4).tolist()

    settings = {
        name: getattr(options, name)
        for name in ('file', 'extend', 'gate_length', 'gate_steps', *sizes)
    }
    gates = jnp.asarray(kept(options.workdir / 'gates.json', settings, trained))
    print(
        f'gates, quartiles: {np.quantile(np.asarray(gates), (0, 0.25, 0.5, 0.75, 1)).round(3)}',
        flush=True,
    )
    random = np.random.default_rng(0).random(gates.shape)
    streaming = lambda gates: deploy(
        full, retrieval_heads(gates, sparsity=options.sparsity), **sizes
    )
    variants = {
        'every key': lambda: full,
        'streaming heads, trained gates': lambda: streaming(gates),
        'streaming heads, random gates': lambda: streaming(random),
        'lm_infinite': lambda: model.extend('lm_infinite()'),
    }
    for task, job in jobs.items():
        rows = []
        for name, variant in variants.items():
            for found in measure(job, variant()):
                panel = 'text' if task == 'text' else f'{found.length} tokens'
                x = found.position_low if task == 'text' else found.depth
                rows.append((panel, name, x, 0, found.value))
                print(
                    task,
                    name,
                    found.length,
                    x,
                    f'{found.value:.4g}',
                    f'{found.nll:.4g}',
                    flush=True,
                )
        words = ('first token', 'perplexity') if task == 'text' else ('depth', 'exact match')
        report(
            rows, options.workdir / task, title=task, x=words[0], value=words[1], log=task == 'text'
        )

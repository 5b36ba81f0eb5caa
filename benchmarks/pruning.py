"""Reading a long text with a trained model of `fox()`, with and without `prune=-10`.

Both have the same weights, and read the same windows of the test text of the run.

    python benchmarks/pruning.py --run RUN_DIRECTORY
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import longer, options, show, take_turns

from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare


def main():
    args = options(__doc__, run='', length=4096, rows=1, prune=-10.0, rounds=5)
    job = prepare(args.run, UNASKED)
    text = np.asarray(job.task.tokens('test')[: args.rows * args.length])
    tokens, plain = jnp.asarray(text.reshape(args.rows, args.length)), job.load()[0]
    cfg = dataclasses.replace(plain.cfg, encoding=f'fox(prune={args.prune})')
    pruned = Transformer(cfg, rngs=nnx.Rngs(0))
    nnx.update(pruned, nnx.state(plain))
    read = jax.jit(lambda model, tokens: model(tokens))
    calls = {
        name: functools.partial(read, model, tokens)
        for name, model in (('plain', plain), ('pruned', pruned))
    }
    difference = float(jnp.abs(calls['plain']() - calls['pruned']()).max())
    time, times = longer(take_turns(calls, args.rounds), 'pruned', 'plain')
    rows = [(f'fox(prune={args.prune})', time, times, f'{difference:.1e}')]
    columns = ('encoding', 'ms', 'of the time of fox()', 'largest difference of a logit')
    show(f'{args.rows} x {args.length} tokens, {args.run}', columns, rows)


if __name__ == '__main__':
    main()

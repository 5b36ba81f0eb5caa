"""The train step: against dense attention, the cost of calling it, and its compile time by depth.

    python benchmarks/train_step.py  # five minutes on two cores

There is a table for each of the three.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
from flax import nnx
from measure import longer, options, ratio, show, take_turns, temporary_mib

from configs.default import get_config
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.model.parameters import decays
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.runs.state import TrainState, take_apart
from posenc_jax.lab.train.optimizer import make_optimizer
from posenc_jax.lab.train.step import make_trainer, train_step
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.tokens import Tokens

VOCAB = 256
STANDARD = dict(layers=6, width=256, heads=8, length=512, batch=8, rounds=7)


class DenseTransformer(Transformer):
    """The same model with `jax.nn.dot_product_attention` and ALiBi as a dense bias."""

    def hidden(self, tokens, tok=None, *, key=None, train=False, source=None):
        (placed,) = self.place(Tokens.of(length=tokens.shape[1]))
        alibi = self.shared[0]
        bias = alibi.bias(placed.pos, placed.pos)

        def layer(x, number, layer_type, block):
            attention = block.attention
            mix = lambda h: attention.output(
                jax.nn.dot_product_attention(*attention.qkv(h), bias=bias, is_causal=True)
            )
            return block.around(x, mix), None

        x, _ = self.scan_layers(layer, self.embed(tokens, (placed,)))
        return self.norm(x)


def model_config(encoding: str, **sizes) -> TransformerConfig:
    return TransformerConfig(vocab_size=VOCAB, encoding=encoding, **sizes)


def sizes_of(args) -> dict[str, int]:
    """The fields of the model that the options set."""
    return dict(train_len=args.length, layers=args.layers, width=args.width, heads=args.heads)


def described(args) -> str:
    """The sizes for the title of a table."""
    return (
        f'{args.layers} layers, D {args.width}, {args.heads} heads, L {args.length}, '
        f'B {args.batch}, float32'
    )


def batch_of(batch: int, length: int) -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, VOCAB)
    return {
        'tokens': tokens[:, :-1],
        'targets': tokens[:, 1:],
        'loss_mask': jnp.ones((batch, length)),
    }


def run_of(cfg: TransformerConfig, batch: dict[str, jax.Array]) -> Run:
    """A run with this model and rows of this number, with the defaults of all other fields."""
    config = get_config()
    config.train.batch = len(batch['tokens'])
    return Run(pathlib.Path(), config, make_task(config), cfg)


class Step:
    """A compiled step with its state; a call makes one update and returns the loss."""

    def __init__(
        self,
        cfg: TransformerConfig,
        batch: dict[str, jax.Array],
        kind: type[Transformer] = Transformer,
    ):
        model = kind(cfg, rngs=nnx.Rngs(0))
        _, params, constants = take_apart(model)
        run, params = run_of(cfg, batch), nnx.to_pure_dict(params)
        vars(run)['model'] = model  # in the place of the one that the run would build
        optimizer = make_optimizer(run.config.train, decays(model))
        self.batch = batch
        self.state = TrainState(
            jnp.zeros((), jnp.int32), params, nnx.to_pure_dict(constants), optimizer.init(params)
        )
        step = jax.jit(functools.partial(train_step, run, optimizer), donate_argnums=0)
        begin = time.perf_counter()
        self.compiled = step.lower(self.state, batch).compile()
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        return metrics['loss']


class MeshStep:
    """The trainer's step over all devices, as train.py runs it; a call makes one update and returns
    the loss.
    """

    def __init__(self, run: Run, batch: dict[str, jax.Array]):
        mesh = make_mesh()
        self.trainer = make_trainer(run, mesh)
        # As in the training loop: where a mesh is set, attention runs in `shard_map`, and each sum
        # over the batch is made once.
        with jax.set_mesh(mesh):
            self.state = self.trainer.init({})
            self.batch = jax.device_put(batch, self.trainer.batch_sharding)
            self.compiled = self.trainer.step.lower(self.state, self.batch).compile()

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        return metrics['loss']


def against_dense(args):
    batch = batch_of(args.batch, args.length)
    cfg = model_config('alibi()', **sizes_of(args))
    steps = {'dense': Step(cfg, batch, DenseTransformer), 'ours': Step(cfg, batch)}
    losses = {name: float(step()) for name, step in steps.items()}
    seconds = take_turns(steps, args.rounds)
    rows = [
        (name, *longer(seconds, name, 'dense'), temporary_mib(step), f'{losses[name]:.5f}')
        for name, step in steps.items()
    ]
    title = f'Train step with ALiBi: {described(args)}'
    show(title, ('attention', 'ms', 'time', 'temporary MiB', 'first loss'), rows)


def dispatch(args):
    """The cost of calling the trainer's step, against `jax.jit` of the same step on one flat dict.
    The model is so small that the call itself is a good part of the time.
    """
    batch = batch_of(1, 8)
    cfg = model_config('alibi()', train_len=8, layers=args.layers, width=16, heads=2)
    trainer = make_trainer(run_of(cfg, batch), make_mesh(devices=jax.devices()[:1]))
    state = trainer.init({})
    structure = jax.tree.structure(state)
    flat = lambda state: dict(enumerate(jax.tree.leaves(state)))
    nested = lambda leaves: jax.tree.unflatten(structure, [leaves[i] for i in range(len(leaves))])

    def plain(leaves, batch):
        new, metrics = trainer.step(nested(leaves), batch)
        return flat(new), metrics

    steps = {
        'TrainState, sharded': trainer.step,
        'flat dict, plain jax.jit': jax.jit(plain, donate_argnums=0),
    }
    states = dict(zip(steps, (state, jax.tree.map(jnp.copy, flat(state)))))
    calls = 200

    def run(name):
        for _ in range(calls):
            states[name], _ = steps[name](states[name], batch)
        return states[name]

    seconds = take_turns({name: functools.partial(run, name) for name in steps}, args.rounds)
    of = lambda name: f'{ratio(seconds, name, "flat dict, plain jax.jit"):.2f}x'
    rows = [(name, f'{min(times) / calls * 1e6:.0f}', of(name)) for name, times in seconds.items()]
    title = f'Calling a tiny step of {structure.num_leaves} arrays'
    show(title, ('state', 'us per call', 'time'), rows)


def compile_time(args):
    sizes, batch = sizes_of(args), batch_of(args.batch, args.length)
    fastest = lambda layers: min(
        Step(model_config('alibi()', **sizes | {'layers': layers}), batch).compile_seconds
        for _ in range(3)
    )
    shallow, deep = fastest(args.layers), fastest(4 * args.layers)
    rows = [
        (args.layers, f'{shallow:.1f}', '1.00x'),
        (4 * args.layers, f'{deep:.1f}', f'{deep / shallow:.2f}x'),
    ]
    show('Tracing and compiling the train step', ('layers', 'seconds', 'time'), rows)


def main():
    args = options(__doc__, **STANDARD)
    against_dense(args)
    dispatch(args)
    compile_time(args)


if __name__ == '__main__':
    main()

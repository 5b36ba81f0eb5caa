"""Memory of training on a long sequence that is cut over a ring of devices.

The table gives XLA's own figures for the loss of a decoder and all its gradients: the temporary
memory of a device, for one device and for several emulated ones, and how many keys and values a
device holds at a time. The programs are compiled and not run.

    PYTHONPATH=. python benchmarks/ring.py               # 32k tokens; minutes on two cores
    PYTHONPATH=. python benchmarks/ring.py --length=131072 --devices 1 8 16 --specs 'shaw()'
"""

import os


def temporary(spec: str, devices: int, length: int, layers: int, width: int, heads: int) -> int:
    """Bytes of temporary memory of each device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding

    from posenc_jax.lab.model import Transformer, TransformerConfig
    from posenc_jax.layer.sharding import make_mesh, param_shardings, spec_of

    cfg = TransformerConfig(
        vocab_size=256, train_len=length, layers=layers, width=width, heads=heads, encoding=spec,
        remat='full',
    )  # fmt: skip
    model = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def loss(params, rest, tokens):
        logits = nnx.merge(graphdef, params, rest)(tokens)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -picked.mean()

    mesh = make_mesh(data=1, sequence=devices, devices=jax.devices()[:devices])
    place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    leaves, structure = jax.tree.flatten(state)
    placed = map(place, leaves, jax.tree.leaves(param_shardings(state, mesh)))
    params, rest = nnx.split_state(jax.tree.unflatten(structure, placed), nnx.Param, ...)
    cut = NamedSharding(mesh, spec_of(('batch', 'sequence')))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=cut)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(params, rest, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main():
    from measure import MIB, options, show

    args = vars(
        options(
            __doc__,
            devices=[1, 8],
            specs=['rope()', 't5_rpe()', 'cope()', 'path()'],
            length=32768,
            layers=2,
            width=512,
            heads=8,
        )  # fmt: skip
    )
    specs, devices = args.pop('specs'), args.pop('devices')
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={max(devices)}'
    rows = []
    for spec in specs:
        found = [temporary(spec, count, **args) for count in devices]
        rows += [
            (spec, count, f'{size / MIB:.1f}', f'1/{found[0] / size:.2f}')
            for count, size in zip(devices, found)
        ]
    title = '{layers} layers of width {width}, {length} tokens: loss and gradients'.format(**args)
    columns = ('encoding', 'devices', 'temporary MiB of each', 'part of the first row')
    show(title, columns, rows)


if __name__ == '__main__':
    main()

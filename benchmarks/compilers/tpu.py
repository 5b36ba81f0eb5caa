"""Kernels for TPUs: libtpu compiles them and writes the bundles of instructions of each one.

`requirements/compilers.txt` has it. No TPU is needed.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import kernel_table
from benchmarks.compilers import children, reports
from posenc_jax.attention.kernels.compiled import SPLASH

# The name of a target -> of a group of four chips, for JAX and for libtpu.
TOPOLOGIES = {'v5e': ('v5e:2x2', 'v5litepod-4'), 'v5p': ('v5p:2x2x1', 'v5p-8')}
# What the file of a kernel of splash attention has in its name.
_SPLASH = {'dkv': 'dkv', 'dq': 'dq', 'fwd': 'forward'}


def missing() -> str | None:
    """What is not installed, or None."""
    return None if importlib.util.find_spec('libtpu') else 'libtpu'


def releases() -> str:
    """The compilers and their releases."""
    return f'jax {jax.__version__}, libtpu {importlib.metadata.version("libtpu")}'


def environment(target: str) -> dict[str, str]:
    """Variables of a process that compiles for a target."""
    return kernel_table.HOST | dict(TPU_ACCELERATOR_TYPE=TOPOLOGIES[target][1])


def kernels(key: str, spec: str, target: str, **sizes) -> dict[str, dict]:
    """The bundles of a visit of each kernel of attention and its gradients, by its pass.

    Args:
      key, spec, **sizes: as for `kernel_table.attention`; the key 'splash' is the kernel of JAX.
      target: one of `TOPOLOGIES`.
    """
    if key == SPLASH:
        return _splash(target, **sizes)
    with children.lowering():
        run, arguments = kernel_table.attention(key, spec, 'tpu', True, **sizes)
    return _compiled(run, arguments, target, reports.KERNELS)


def _splash(target: str, length: int, width: int, dtype, block, **_) -> dict[str, dict]:
    """The same of the kernel of JAX, with a causal mask."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads = kernel_table.HEADS
    (queries, keys), names = block, 'q kv q_dkv kv_dkv q_dq kv_dq'.split()
    run = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=kernel.BlockSizes(
            **{f'block_{name}': queries if name[0] == 'q' else keys for name in names}
        ),
        head_shards=1, q_seq_shards=1,
    )  # fmt: skip
    total = lambda *arrays: run(*arrays).astype(jnp.float32).sum()
    arrays = [jax.ShapeDtypeStruct((heads, length, width), dtype)] * 3
    return _compiled(jax.grad(total, (0, 1, 2)), arrays, target, _SPLASH)


def _compiled(run, arguments, target: str, names) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        wanted = 'final_bundles|final_hlo-static-per-bundle-utilization'
        os.environ['LIBTPU_INIT_ARGS'] = (
            f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
            f'--xla_jf_dump_llo_pass_label_regex={wanted}'
        )
        device = topologies.get_topology_desc(TOPOLOGIES[target][0], platform='tpu').devices[0]
        place = SingleDeviceSharding(device)
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
        )
        with children.lowering():
            lowered = jax.jit(run).trace(*placed).lower(lowering_platforms=('tpu',))
        lowered.compile()
        return _read(pathlib.Path(folder), names)


def _read(folder: pathlib.Path, names) -> dict[str, dict]:
    found = {}
    for path in sorted(folder.glob('*[0-9]-final_bundles.txt')):
        name = next((names[name] for name in names if name in path.name), None)
        program = path.name.rsplit('-', 2)[0]
        use = list(folder.glob(f'{program}-*-final_hlo-static-per-bundle-utilization.txt'))
        if name and use:
            found[name] = vars(reports.of_visit(path.read_text(), use[0].read_text()))
    return found

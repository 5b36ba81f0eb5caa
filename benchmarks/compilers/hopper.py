"""The kernel for GPUs of Hopper: Mosaic makes PTX of it where XLA compiles a program for an H100,
and then `ptxas` and `nvdisasm` are asked as for other kernels. No GPU is needed.
"""

import os
import pathlib
import re
import tempfile

import jax
from jax.experimental import topologies

from benchmarks import kernel_table
from benchmarks.compilers import children, gpu, steps
from posenc_jax.attention.kernels.hopper import GROUPS, KEYS, QUERIES

TILE = QUERIES, KEYS
_WARPS = 4  # that have a tile
missing, releases = gpu.missing, gpu.releases
_SHARED = re.compile(r'dynamic_shared_memory_size %c(\d+)')


def kernels(key: str, spec: str, target: str, **sizes) -> dict[str, dict[str, float]]:
    """What the compilers say of the forward pass.

    Args:
      key, spec, **sizes: as for `kernel_table.attention`; the kernel has a tile of its own.
      target: 'sm_90a'.
    """
    import jax_cuda12_plugin  # where the compilers are installed

    others = gpu.others(key, spec, **sizes | dict(block=(GROUPS * QUERIES, KEYS)))
    with tempfile.TemporaryDirectory() as folder:
        ptxas = pathlib.Path(gpu.program('ptxas') or 'ptxas')
        runtime = pathlib.Path(jax_cuda12_plugin.__file__).with_name('libmosaic_gpu_runtime.so')
        os.environ.update(
            MOSAIC_GPU_CUDA_ROOT=str(ptxas.parent.parent), MOSAIC_GPU_DUMP_TO=folder,
            MOSAIC_GPU_RUNTIME_LIB_PATH=str(runtime),
            PATH=f'{ptxas.parent}{os.pathsep}{os.environ["PATH"]}',
        )  # fmt: skip
        devices = topologies.get_topology_desc(
            platform='cuda', target_config=steps.H100, topology='1x1x1'
        ).devices
        placed = jax.sharding.SingleDeviceSharding(devices[0])
        with children.lowering():
            how = dict(implementation='hopper', device='sm_90', **sizes | dict(block=None))
            run, arguments = kernel_table.attention(key, spec, 'cuda', False, **how)
            arguments = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), arguments
            )
            traced = jax.jit(run).trace(*arguments)
        traced.lower(lowering_platforms=('cuda',)).compile()
        (code,) = pathlib.Path(folder).glob('*.ptx')
        (passes,) = pathlib.Path(folder).glob('*passes.log')
        shared = {int(found[1]) for found in _SHARED.finditer(passes.read_text())}
        found = gpu.assembled(code.read_text(), target)
    return {
        'forward': found | dict(shared=round(max(shared) / 1024, 2), warps=_WARPS, others=others)
    }

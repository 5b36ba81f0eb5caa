"""Whole train steps, compiled for an H100 and for a group of TPUs v5e, with their memory.

A step is that of `train.py`, on a mesh that cuts the rows of the batch over the devices.
"""

import re
from unittest import mock

import jax
from jax.experimental import topologies

from benchmarks.compilers import tpu
from posenc_jax.base.targets import made_for
from posenc_jax.layer.sharding import make_mesh

ROWS, LENGTH = 8, 2048
SIZES = dict(layers=12, width=1024, heads=16, train_len=LENGTH, dtype='bfloat16')
_CALL = r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)"'
# What XLA asks about a GPU that is not there: the public data of an H100 SXM with 80 GB.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}
"""


def memory(spec: str, target: str, implementation: str) -> dict[str, float]:
    """MiB of the arguments and of temporary memory on each device, and how many kernels of Pallas
    the program has.

    Args:
      spec: the encoding.
      target: 'sm_90', a GPU, or 'v5e', four TPUs.
      implementation: of attention.
    """
    import train_step  # which finds `measure` where a program of benchmarks/ has been started

    kind = 'tpu' if target in tpu.TOPOLOGIES else 'cuda'
    if kind == 'tpu':
        devices = topologies.get_topology_desc(tpu.TOPOLOGIES[target][0], platform='tpu').devices
    else:
        devices = topologies.get_topology_desc(
            platform='cuda', target_config=H100, topology='1x1x1'
        ).devices
    mesh = make_mesh(devices=devices)
    batch = jax.eval_shape(lambda: train_step.batch_of(ROWS, LENGTH))
    cfg = train_step.model_config(spec, **SIZES, implementation=implementation)
    unasked = mock.patch('posenc_jax.lab.train.step.check_memory')  # of a device that is not there
    within = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with made_for(kind, target), within, unasked:
        trainer = train_step.make_trainer(train_step.run_of(cfg, batch), mesh)
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=trainer.batch_sharding), batch
        )
        lowered = trainer.step.trace(trainer.abstract, placed).lower(lowering_platforms=(kind,))
        compiled = lowered.compile()
    found, mib = compiled.memory_analysis(), 2**20
    return dict(
        arguments=found.argument_size_in_bytes / mib,
        temporary=found.temp_size_in_bytes / mib,
        kernels=len(re.findall(_CALL, compiled.as_text())),
    )

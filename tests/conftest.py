"""How JAX is set up in every test process; before it is imported, since it reads the flags once."""

import importlib.metadata
import os

_FLAGS = [
    '--xla_force_host_platform_device_count=8',  # emulated devices
    '--xla_backend_optimization_level=0',  # tests spend their time compiling, not computing
    '--xla_llvm_disable_expensive_passes=true',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # a flag that a release does not know ends the process
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # half the time of the whole suite
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join([_given, *(flag for flag in _FLAGS if flag.split('=')[0] not in _given)]).strip()

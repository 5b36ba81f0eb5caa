"""How JAX is set up in every test process; before it is imported, since it reads the flags once."""

import os

_FLAGS = (
    '--xla_force_host_platform_device_count=8',  # emulated devices
    '--xla_backend_optimization_level=0',  # tests spend their time compiling, not computing
    '--xla_llvm_disable_expensive_passes=true',
)
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join([_given, *(flag for flag in _FLAGS if flag.split('=')[0] not in _given)]).strip()

"""Kernels for GPUs of NVIDIA: Triton makes PTX of them, `ptxas` machine code, and `nvdisasm` text.

`requirements/compilers.txt` has these programs. No GPU is needed.
"""

import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

import jax
from flax import nnx

import posenc_jax as pj
from benchmarks import kernel_table
from benchmarks.compilers import children, reports
from posenc_jax.attention.kernels import visits
from posenc_jax.attention.kernels.sizes import GPU_TILES
from posenc_jax.attention.tiles import Blocks, Plan
from tests import contract_test

_LONG = 8192  # tokens of a long text


def program(name: str) -> str | None:
    """The path of a program of CUDA, from a package of Python or from the search path."""
    found = importlib.util.find_spec('nvidia')
    places = [pathlib.Path(place) for place in (found and found.submodule_search_locations or ())]
    paths = [path for place in places for path in sorted(place.glob(f'*/bin/{name}'))]
    return str(paths[0]) if paths else shutil.which(name)


def missing() -> str | None:
    """What is not installed, or None."""
    names = [name for name in ('ptxas', 'nvdisasm') if program(name) is None]
    if _version('jax-cuda12-plugin') != jax.__version__:
        names.append(f'jax-cuda12-plugin {jax.__version__}')
    return ', '.join(names) or None


def releases() -> str:
    """The compilers and their releases."""
    return f'jax {jax.__version__}, ptxas {_version("nvidia-cuda-nvcc-cu12") or "of the machine"}'


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def kernels(key: str, spec: str, target: str, **sizes) -> dict[str, dict[str, float]]:
    """What the compilers say of each kernel of attention and its gradients, by its pass.

    Args:
      key, spec, **sizes: as for `kernel_table.attention`.
      target: 'sm_80' or 'sm_90'.
    """
    with children.lowering():
        run, arguments = kernel_table.attention(key, spec, 'cuda', True, **sizes)
        lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=('cuda',))
    found, many = {}, others(key, spec, **sizes)
    for call in _calls(lowered.compiler_ir('stablehlo').operation):
        name, *program = call
        found[reports.KERNELS[name]] = _compiled(*program, target) | dict(others=many)
    return found


def others(key: str, spec: str, width: int, model: int, block, **_) -> int:
    """How many tiles a block of queries meets at most that need a mask or look-ups, by the
    encoding; 0 where it says nothing of tiles.
    """
    sizes = kernel_table.SIZES | dict(head_dim=width, model_dim=model, train_len=_LONG)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **sizes)
    tok = pj.Tokens.of(length=_LONG)
    queries, keys = block or GPU_TILES[0]
    plan = Plan(None, *(Blocks(size, 1) for size in (queries, keys, keys)), (), target='cuda')
    apart = visits.plan_apart(plan, encoding, tok, tok)
    if key in contract_test.PLACED or apart is None:
        return 0
    _, _, others = visits.visits_of_queries(plan, encoding, tok, tok, apart=apart)
    return int(others.max())


def _calls(module) -> list[tuple]:
    """The name, the program, the warps and the stages of each kernel."""
    from jax._src.lib.mlir import ir

    found = []

    def visit(operation):
        attributes = operation.attributes
        if 'call_target_name' in attributes and 'triton' in str(attributes['call_target_name']):
            config = attributes['mhlo.backend_config']
            numbers = [ir.IntegerAttr(config[n]).value for n in ('num_warps', 'num_stages')]
            name, code = (ir.StringAttr(config[n]) for n in ('name', 'ir'))
            found.append((name.value, code.value_bytes, *numbers))
        return ir.WalkResult.ADVANCE

    module.walk(visit)
    return found


def _compiled(code: bytes, warps: int, stages: int, target: str) -> dict[str, float]:
    from jax._src.lib import triton

    capability = '.'.join(target.removeprefix('sm_'))
    made = triton.compile('CUDA', code, capability, num_warps=warps, num_ctas=1, num_stages=stages)
    ptx = made.asm if isinstance(made.asm, str) else made.asm.decode()
    return assembled(ptx, target) | dict(shared=round(made.smem_bytes / 1024, 2), warps=warps)


def assembled(ptx: str, target: str) -> dict[str, float]:
    """What the assembler says of a kernel: its registers, and the instructions of its loops."""
    architecture = re.search(r'\.target (\w+)', ptx)
    with tempfile.TemporaryDirectory() as folder:
        source, code_file = pathlib.Path(folder, 'kernel.ptx'), pathlib.Path(folder, 'kernel.cubin')
        source.write_text(ptx)
        name = architecture[1] if architecture else target
        said = _run('ptxas', '-v', '--gpu-name', name, str(source), '-o', str(code_file))
        used = reports.resources(said)
        loop = reports.of_loop(_run('nvdisasm', '-c', str(code_file)))
    return used | vars(loop)


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([program(name) or name, *arguments], capture_output=True, text=True)
    if done.returncode < 0:  # for instance at the bound of processor time
        raise ValueError(f'{name} was ended by {signal.Signals(-done.returncode).name}')
    return done.stdout + done.stderr

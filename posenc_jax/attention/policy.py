"""The choice of what computes attention where no kernel of JAX does, and the reason for it.

The first of these that has an answer decides: the argument `implementation`, the user's file of
decisions (`attention/decisions.py`), what compilers said of the kernel (`kernels/sizes.py`), and
the default. By default a kernel of this library is taken for the classes of encodings whose kernels
are simple, on devices whose compilers were asked about them. Counted instructions put these
kernels 4 to 10 times ahead of the programs of XLA, so they would win if the count were wrong by a
factor of two.

The class of an encoding follows from its doors in the pair stage:

    none      it has masks alone
    bias      it changes logits, one by one, by numbers of the tokens
    products  its logits need further products, or queries and keys
    look-up   its logits are looked up, or computed in a loop
    carry     it hands a carry from block to block
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.attention.tile_sizes import Implementation, fits_one_tile
from posenc_jax.base import targets
from posenc_jax.base.meshes import compiler_cuts, varying_axes
from posenc_jax.protocol.capabilities import first_carry

OURS = 'a kernel of this library'
_PLATFORMS = 'cuda', 'tpu', *targets.INTERPRETED
# Devices whose compilers were asked about the kernels, and classes whose kernels are simple.
_VOUCHED = 'sm_80', 'sm_90', 'v5e', 'v5p'
SIMPLE = 'none', 'bias'
_LOOKING_UP = {
    'gather', 'scatter', 'scatter-add', 'dynamic_slice', 'dynamic_update_slice', 'while', 'scan',
    'sort', 'argmax', 'argmin',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Choice:
    """How attention is computed.

    Attributes:
      implementation, block: as for `attend`, with the choice made.
      words: what computes it and why, where no kernel of JAX does.
      library: whether a kernel of JAX comes first where one can serve.
    """

    implementation: Implementation | None
    block: Any
    words: str = 'in blocks'
    library: bool = True


def choose(encoding, arrays, options, own_kernel: Callable) -> Choice:
    """What computes a call of `attend`.

    Args:
      encoding, arrays: of the call: (q, k, v, tq, tk).
      options: the other arguments of the call, by name.
      own_kernel: (encoding, arrays, options) -> 'kernel' or 'hopper' where that kernel of this
        library can compute attention, else None; and what computes it, in words.
    """
    given, block = options['implementation'], options['block']
    if given not in (None, 'fused'):
        return Choice(given, block)
    unusual = block is not None or any(
        options[name] for name in ('axis_name', 'heads_first', 'return_lse')
    )
    about, usual = '', targets.platform() in _PLATFORMS and not unusual
    if given is None and not usual:
        return Choice(None, block)
    if usual and not varying_axes(arrays):
        from posenc_jax.attention import decisions  # which nobody needs on a CPU

        q = arrays[0]
        what = lambda: (class_of(encoding, *arrays), q.shape[-1], q.dtype.name)
        try:
            decided, about = decisions.decision(targets.device_kind(), what)
        except ValueError as error:
            return Choice(None, None, f'in blocks ({error})')
        if decided is not None:
            return _decided(decided, encoding, arrays, options, own_kernel)
        about = about and f' ({about})'
    if given is None and (why := _not_by_default(encoding, arrays)):
        return Choice(None, None, f'in blocks ({OURS} {why}){about}')
    implementation, words = own_kernel(encoding, arrays, options)
    if implementation is not None:
        words += _vouched(encoding, arrays[0], given)
    return Choice(implementation, block, words + about)


def _vouched(encoding, q, given: str | None) -> str:
    """What a line says of a kernel besides its name: that it is the default, or that its compiler
    was not asked about it.
    """
    device = targets.device()
    if given is None:
        return f', the default on {device}'
    if targets.platform() not in ('cuda', 'tpu'):
        return ''
    name = _unlisted(encoding, q.shape[-1], q.dtype.name, device)
    where = device or 'this device'
    return f', whose compiler was not asked about {name} on {where}' if name else ''


def _decided(decided, encoding, arrays, options, own_kernel) -> Choice:
    from posenc_jax.attention import decisions

    place = decisions.path()
    if decided.form == 'blocked':
        return Choice(None, None, f'in blocks (by {place})', decided.library)
    options = {**options, 'block': decided.block, 'implementation': decided.form}
    implementation, words = own_kernel(encoding, arrays, options)
    if implementation is None:
        return Choice(None, None, f'{words}, though {place} asks for it', decided.library)
    return Choice(implementation, decided.block, f'{words}, by {place}', decided.library)


def _not_by_default(encoding, arrays) -> str | None:
    """Why a kernel is not the default for this attention, with the kernel as the subject."""
    q, k, *_ = arrays
    if (device := targets.device()) not in _VOUCHED:
        known = ', '.join(_VOUCHED)
        return f'is the default on {known}, and this is {device or "no device that is known"}'
    if compiler_cuts():
        return 'needs jax.shard_map on several devices'
    if varying_axes(arrays):
        return 'needs check_vma=False inside jax.shard_map'
    if fits_one_tile(q.shape, k.shape[1], encoding.opens('first_carry')):
        return 'is the default for more logits than one tile has'
    if (found := class_of(encoding, *arrays)) not in SIMPLE:
        return f'is the default for encodings of the class {" or ".join(SIMPLE)}, not {found}'
    if name := _unlisted(encoding, q.shape[-1], q.dtype.name, device):
        return f'is the default where its compiler was asked, and was not for {name} on {device}'
    return None


def _unlisted(encoding, width: int, dtype: str, device: str | None) -> str | None:
    """A part of an encoding, with the width of heads and the dtype, about whose kernel the compiler
    of a device was not asked. A kernel for wider heads answers for narrower ones.
    """
    from posenc_jax.attention.kernels import compiled  # which reads a file

    if kernel_sizes.in_full_float32(dtype):
        return f'products in full {dtype}'
    line = lambda name: compiled.line_for(name, width, dtype, device)
    missing = next((name for name in compiled.names(encoding) if line(name) is None), None)
    return missing and f'{missing} with heads of width {width} in {dtype}'


def class_of(encoding, q, k, v, tq, tk) -> str:
    """The class of an encoding, see above, from a trace of its doors."""
    from posenc_jax.attention.kernels.program import at_any_depth

    def logits(q, k):
        q, k = (jnp.swapaxes(a, 1, 2) for a in (q, k))
        s = jnp.zeros((*q.shape[:3], k.shape[2]), jnp.float32)
        seen = jnp.ones((1, 1, *s.shape[2:]), bool)
        return encoding.logits(s, q, k, tq, tk, seen, first_carry(encoding, q, tq))[0]

    def collect(v):
        weights = jnp.zeros((*v.shape[:1], q.shape[2], q.shape[1], v.shape[1]), jnp.float32)
        return encoding.collect(weights, jnp.swapaxes(v, 1, 2), tq, tk)

    if jax.eval_shape(lambda q: jax.tree.leaves(first_carry(encoding, q, tq)), q.swapaxes(1, 2)):
        return 'carry'
    programs = []
    if encoding.opens('logits'):
        programs.append(jax.make_jaxpr(logits)(q, k).jaxpr)
    if encoding.opens('collect'):
        programs.append(jax.make_jaxpr(collect)(v).jaxpr)
    used = {
        equation.primitive.name for program in programs for equation in at_any_depth(program.eqns)
    }
    if used & _LOOKING_UP:
        return 'look-up'
    if 'dot_general' in used or encoding.opens('collect') or any(map(_reads, programs)):
        return 'products'
    return 'bias' if programs else 'none'


def _reads(jaxpr) -> bool:
    """Whether the result of a program depends on its arguments."""
    reached = {id(a) for a in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(a) in reached for a in equation.invars):
            reached.update(map(id, equation.outvars))
    return any(id(a) in reached for a in jaxpr.outvars)

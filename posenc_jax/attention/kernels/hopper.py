"""The forward pass of attention as a kernel for GPUs of Hopper, compiled by Mosaic.

A block of threads has three groups of four warps. Two of them have 64 queries each, and the third
one copies blocks of keys and values for both to shared memory, while they compute with the ones
before. Its tiles are [64, 128], whatever the other kernels have. Masks and biases are those of the
doors (`kernels/doors.py`); full tiles have a loop of their own. It serves encodings that have masks
alone, or change logits by numbers of the tokens. The backward pass is that of the other kernels.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.kernels.arrays import examples
from posenc_jax.attention.kernels.call import Call
from posenc_jax.attention.kernels.doors import KEY, QUERY, Door, Read
from posenc_jax.attention.kernels.sizes import NoKernelError
from posenc_jax.attention.kernels.visits import Visits, plan_apart, visits_of_queries
from posenc_jax.attention.sweep import LOWEST, MASKED
from posenc_jax.attention.tiles import Blocks, mask
from posenc_jax.base import targets
from posenc_jax.protocol.capabilities import first_carry

gpu: Any = mosaic_gpu  # its types are those of one of its uses
QUERIES, KEYS = 64, 128  # of a tile
_SIZES = {QUERY: QUERIES, KEY: KEYS}
GROUPS, _SLOTS = 2, 2  # groups of warps that compute, and blocks of keys that are held at once
_REGISTERS, _REGISTERS_OF_COPIES = 240, 24  # of each thread
_LOG2E = math.log2(math.e)


def forward(plan, params, constants, q, k, v, tq, tk):
    """As `passes.forward`."""
    check(plan.encoding(params, constants), q, k, v)
    blocks = Blocks(GROUPS * QUERIES, 1), Blocks(KEYS, plan.k.axis)
    own, length = dataclasses.replace(plan, q=blocks[0], k=blocks[1]), q.shape[1]
    q, k, v, tq, tk = own.pad(q, k, v, tq, tk)
    call = Call.of(own, params, constants, q, k, v, tq, tk)
    encoding = plan.encoding(params, constants)
    apart = plan_apart(own, encoding, tq, tk)
    doors = [make_door(tile, call) for tile in (own, apart) if tile is not None]
    order, count, masked = visits_of_queries(own, encoding, tq, tk, apart=apart)
    tables = [jnp.asarray(a, jnp.int32).reshape(-1) for a in (order, count, masked)]
    kernel = _Kernel(call, doors, _inputs(call, doors), Visits(*order.shape, back=False))
    out, lse = kernel(tables)
    return plan.q.swap(out[:, :, :length]), lse[:, :, :length]


def check(encoding, q, k, v) -> None:
    """Refuses what this kernel does not compute.

    Raises:
      NoKernelError: another device, dtype or width, or its compiler refuses the encoding.
    """
    refuse = functools.partial(NoKernelError, form='hopper')
    interpreted = targets.platform() in targets.INTERPRETED
    if not interpreted and (device := targets.device()) != 'sm_90':
        raise refuse(f'runs on sm_90, and this is {device or targets.platform()}')
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16):
        found = ', '.join(a.dtype.name for a in (q, k, v))
        raise refuse(f'needs bfloat16 or float16, got {found}', 'cast them')
    if q.shape[-1] not in (64, 128) or v.shape[-1] != q.shape[-1]:
        found = f'{q.shape[-1]} and {v.shape[-1]}'
        raise refuse(f'needs heads and values of one width, 64 or 128, got {found}')
    asked = q.shape[-1], q.dtype.name, compiled.HOPPER, (QUERIES, KEYS)
    for name in () if interpreted else compiled.names(encoding):
        if why := compiled.refusal(name, *asked):
            raise refuse(why)


def make_door(plan, call: Call) -> Door:
    """What becomes of a tile of scaled products: the logits, and the mask or None."""

    def door(variables, tq, tk, s):
        encoding = plan.encoding(*variables)
        tq, tk = plan.placed(tq), plan.placed(tk)
        seen = None if plan.full else mask(encoding, tq, tk)
        shown = jnp.ones((1, 1, 1, 1), bool) if seen is None else seen
        # No door of the classes that `attend` lets come here reads queries or keys.
        q, k = (jnp.zeros((1, 1, n, 1), s.dtype) for n in s.shape[2:])
        return encoding.logits(s, q, k, tq, tk, shown, first_carry(encoding, q, tq))[0], seen

    one = lambda leaf: dataclasses.replace(leaf, size=QUERIES)
    variables, tk = examples(call.encoding), examples(call.keys[-1])
    return Door(door, variables, examples(jax.tree.map(one, call.queries[-1])), tk, _SIZES)


@dataclasses.dataclass(frozen=True)
class _Input:
    """An array that doors read.

    Attributes:
      number: among the leaves of a door.
      axis: 'q' or 'k' for an array of tokens, '' for one of the encoding.
      leaf: how a kernel gets it.
    """

    number: int
    axis: str
    leaf: Any

    def at(self, ref, b, n, tokens=None) -> Any:
        """The part of a row and a head in the memory of the device, for `tokens` if it has some."""
        if not self.axis:
            counts = self.leaf.array.shape[:-2]
            return ref[(*(self.leaf.heads.number(count, n) for count in counts), 0, 0)]
        rows, count, *_ = self.leaf.array.shape
        row = b if rows > 1 else 0
        return ref.at[row, self.leaf.heads.number(count, n), 0, tokens]


def _inputs(call: Call, doors: list[Door]) -> list[_Input]:
    trees = ('', call.encoding), (QUERY, call.queries[-1]), (KEY, call.keys[-1])
    leaves = [(axis, leaf) for axis, tree in trees for leaf in jax.tree.leaves(tree)]
    used = sorted({number for door in doors for number in door.used})
    return [_Input(n, *leaves[n]) for n in used]


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The kernel.

    Attributes:
      call: the arrays.
      doors: of the tiles that need a mask, and of the full ones if these are known.
      inputs: the arrays that the doors read.
      visits: which blocks of keys a block of queries meets.
    """

    call: Call
    doors: list[Door]
    inputs: list[_Input]
    visits: Visits

    def __call__(self, tables) -> Any:
        """The result and the log-sum-exp, heads first, from the tables of `visits`."""
        q, k, v = (leaf.array for leaf in (self.call.queries[0], *self.call.keys[:2]))
        given = [q, k, v, *tables, *(one.leaf.array for one in self.inputs)]
        rows, heads, length, width = q.shape

        def body(*refs):
            split = len(given), len(given) + 2
            run = lambda scratch: self._run(refs[: split[0]], refs[slice(*split)], scratch)
            pl.run_scoped(run, self._scratch(width, q.dtype), collective_axes='group')

        interpreted = {}
        if self._interpreted:
            from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

            interpreted = dict(interpret=InterpretGPUParams())
        return gpu.kernel(
            body,
            out_type=[
                jax.ShapeDtypeStruct(shape, dtype)
                for shape, dtype in ((q.shape, q.dtype), (q.shape[:3], jnp.float32))
            ],
            grid=(heads, length // (GROUPS * QUERIES), rows),
            grid_names=('heads', 'blocks', 'rows'),
            num_threads=GROUPS + 1,
            thread_name='group',
            compiler_params=gpu.CompilerParams(
                approx_math=True, lowering_semantics=gpu.LoweringSemantics.Warpgroup
            ),
            **interpreted,
        )(*given)

    @property
    def _interpreted(self) -> bool:
        return self.call.plan.target in targets.INTERPRETED

    def _scratch(self, width: int, dtype) -> dict[str, Any]:
        tiled = gpu.TilingTransform((8, 64)), gpu.SwizzleTransform(128)
        block = lambda count, size: gpu.SMEM((count, size, width), dtype, transforms=tiled)
        sides = {QUERY: (GROUPS, QUERIES), KEY: (_SLOTS, KEYS)}
        of = lambda axis: [one for one in self.inputs if one.axis == axis]
        tokens = lambda axis: [gpu.SMEM(sides[axis], one.leaf.array.dtype) for one in of(axis)]
        return dict(
            q=block(*sides[QUERY]),
            k=block(*sides[KEY]),
            v=block(*sides[KEY]),
            lse=gpu.SMEM(sides[QUERY], jnp.float32),
            of_queries=tokens(QUERY),
            of_keys=tokens(KEY),
            q_ready=gpu.Barrier(num_arrivals=1 + len(of(QUERY)), num_barriers=GROUPS),
            k_ready=gpu.Barrier(num_arrivals=1 + len(of(KEY)), num_barriers=_SLOTS),
            v_ready=gpu.Barrier(num_barriers=_SLOTS),
            k_free=gpu.Barrier(num_arrivals=GROUPS, num_barriers=_SLOTS),
            v_free=gpu.Barrier(num_arrivals=GROUPS, num_barriers=_SLOTS),
        )

    def _run(self, given, results, scratch) -> None:
        q, k, v, order, count, masked, *arrays = given
        b, n, i = (lax.axis_index(axis) for axis in ('rows', 'heads', 'blocks'))
        group, arrays = lax.axis_index('group'), list(zip(self.inputs, arrays))
        total = self.visits.total(b, i, count)
        parts = [(one, ref) for one, ref in arrays if one.axis == KEY]

        @pl.when(group == GROUPS)
        def _():
            gpu.set_max_registers(_REGISTERS_OF_COPIES, action='decrease')
            head = self.call.heads.number(self.call.heads.keys, n)

            @pl.loop(0, total)
            def _(visit):
                block = self.visits.block(b, i, visit, order, count)
                tokens, slot = pl.ds(block * KEYS, KEYS), lax.rem(visit, _SLOTS)
                later = pl.when(visit >= _SLOTS)
                later(lambda: gpu.barrier_wait(scratch['k_free'].at[slot]))
                ready = scratch['k_ready'].at[slot]
                gpu.copy_gmem_to_smem(k.at[b, head, tokens], scratch['k'].at[slot], ready)
                for (one, ref), held in zip(parts, scratch['of_keys']):
                    gpu.copy_gmem_to_smem(one.at(ref, b, n, tokens), held.at[slot], ready)
                later(lambda: gpu.barrier_wait(scratch['v_free'].at[slot]))
                ready = scratch['v_ready'].at[slot]
                gpu.copy_gmem_to_smem(v.at[b, head, tokens], scratch['v'].at[slot], ready)

            @pl.loop(jnp.maximum(total - _SLOTS, 0), total)
            def _(visit):  # a barrier ends with no arrival that nobody has waited for
                gpu.barrier_wait(scratch['k_free'].at[lax.rem(visit, _SLOTS)])
                gpu.barrier_wait(scratch['v_free'].at[lax.rem(visit, _SLOTS)])

        @pl.when(group < GROUPS)
        def _():
            gpu.set_max_registers(_REGISTERS, action='increase')
            tokens = pl.ds((i * GROUPS + group) * QUERIES, QUERIES)
            ready = scratch['q_ready'].at[group]
            gpu.copy_gmem_to_smem(q.at[b, n, tokens], scratch['q'].at[group], ready)
            known = {one.number: one.at(ref, b, n) for one, ref in arrays if not one.axis}
            own = [(one, ref) for one, ref in arrays if one.axis == QUERY]
            for (one, ref), held in zip(own, scratch['of_queries']):
                gpu.copy_gmem_to_smem(one.at(ref, b, n, tokens), held.at[group], ready)
            gpu.barrier_wait(ready)
            places = {
                one.number: (held, group) for (one, _), held in zip(own, scratch['of_queries'])
            }
            known |= {number: held[group] for number, (held, _) in places.items()}
            width = q.shape[-1]
            state = (
                jnp.zeros((QUERIES, width), jnp.float32),
                jnp.full((QUERIES,), LOWEST, jnp.float32),
                jnp.zeros((QUERIES,), jnp.float32),
            )
            meet = functools.partial(self._meet, group, scratch, known, places)
            first = total if len(self.doors) < 2 else self.visits.masked(b, i, masked)
            state = lax.fori_loop(0, first, functools.partial(meet, self.doors[0]), state)
            if len(self.doors) > 1:
                state = lax.fori_loop(first, total, functools.partial(meet, self.doors[1]), state)
            out, high, sums = state
            sums = jnp.where(sums > 0, sums, 1.0)
            out = out / lax.broadcast_in_dim(sums, out.shape, (0,))
            scratch['q'][group] = out.astype(q.dtype)
            scratch['lse'][group] = high * (1 / _LOG2E) + jnp.log(sums)
            gpu.commit_smem()
            for name, ref in zip(('q', 'lse'), results):
                gpu.copy_smem_to_gmem(scratch[name].at[group], ref.at[b, n, tokens])
            gpu.wait_smem_to_gmem(0)

    def _meet(self, group, scratch, known, places, door: Door, visit, state) -> tuple:
        """The state of a group behind a block of keys. The weights are powers of two, and `high` is
        the largest exponent.
        """
        (out, high, sums), slot = state, lax.rem(visit, _SLOTS)
        gpu.barrier_wait(scratch['k_ready'].at[slot])
        s = self._product(scratch['q'].at[group], scratch['k'].at[slot], KEYS, turned=True)
        scale, unit = out.shape[-1] ** -0.5, _LOG2E
        if door.keeps_logits:
            scale, unit = 1.0, scale * _LOG2E  # one factor for both
        s = s * scale
        keys = [one for one in self.inputs if one.axis == KEY]
        here = places | {one.number: (ref, slot) for one, ref in zip(keys, scratch['of_keys'])}

        def leaf(number):
            if number == door.tile:
                return s
            held, at = here.get(number, (None, None))
            return known[number] if number in known else held[at]

        def first(number, axis):
            held, at = here[number]
            return held[at, 0]

        read = Read(_SIZES, leaf, first)
        s, *seen = (
            read.spread(read(value), value.axes, QUERY + KEY)
            for value in door.results if value is not None
        )  # fmt: skip
        gpu.barrier_arrive(scratch['k_free'].at[slot])
        if seen:
            s = jnp.where(seen[0], s, MASKED)
        new = jnp.maximum(high, s.max(1) * unit)
        w = jnp.exp2(s * unit - lax.broadcast_in_dim(new, s.shape, (0,)))
        shrink = jnp.exp2(high - new)
        sums = sums * shrink + w.sum(1)
        gpu.barrier_wait(scratch['v_ready'].at[slot])
        v = scratch['v'].at[slot]
        found = self._product(w.astype(v.dtype), v, out.shape[-1])
        gpu.barrier_arrive(scratch['v_free'].at[slot])
        return out * lax.broadcast_in_dim(shrink, out.shape, (0,)) + found, new, sums

    def _product(self, a, b, columns: int, turned: bool = False) -> Any:
        """`a b`, or `a b^T`, in float32, of queries or weights and a block in shared memory."""
        if self._interpreted:  # the interpreter has products of plain blocks alone
            dimensions = (((1,), (int(turned),)), ((), ()))
            return lax.dot_general(a[...], b[...], dimensions, preferred_element_type=jnp.float32)

        def product(sums):
            gpu.wgmma(sums, a, gpu.transpose_ref(b, (1, 0)) if turned else b)
            return sums[...]

        return pl.run_scoped(product, gpu.ACC((QUERIES, columns), jnp.float32))

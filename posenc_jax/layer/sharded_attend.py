"""Attention on a mesh: every device computes its own rows, heads and queries."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from posenc_jax.attention.attend import attend
from posenc_jax.layer.sharding import ROLES, active_mesh, check_cut, mesh_parts, uncut
from posenc_jax.protocol.composite import owner_of
from posenc_jax.protocol.encoding import TOKEN_STAGE, Encoding
from posenc_jax.protocol.tokens import Tokens


def sharded_attend(
    encoding: Encoding,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K V'],
    tq: Tokens,
    tk: Tokens,
    *,
    heads_first: bool = False,
    return_lse: bool = False,
    **options,
) -> Any:
    """`attend`; on a mesh every device computes its own rows, heads and queries, over all keys.

    Queries, keys and values are cut along batch, sequence and heads. The keys travel round the
    devices of the axis 'sequence' (`attention/ring.py`). Keys of a cache (`heads_first`) stay where
    they are, and every device has all queries of its rows and heads (`attention/split_cache.py`,
    for every `implementation`). Where the axis does not divide the number of keys, or the encoding
    `mixes_logits`, every device gets all keys of its rows and heads. The encoding's variables are
    cut along the head axis that they declare, and per-token features along their heads (N or K).
    The caller has called the doors of the token stage.

    Args:
      heads_first, return_lse, **options: as for `attend`, as is the result.

    Raises:
      ValueError: heads, rows or queries that the mesh does not divide, with the numbers; heads
        that are cut though the encoding mixes them.
    """
    mesh = active_mesh()
    own: dict[str, Any] = dict(heads_first=heads_first, return_lse=return_lse)
    own.update(applied=TOKEN_STAGE, **options)
    if mesh is None:
        return attend(encoding, q, k, v, tq, tk, **own)
    heads, kv_heads = q.shape[2], k.shape[1 if heads_first else 2]
    tensor, rows = ROLES['heads'], ROLES['batch']
    for name, count in (('query heads', heads), ('key heads', kv_heads)):
        if count % mesh_parts(mesh, tensor):
            raise ValueError(f'{count} {name} {uncut(math.gcd(heads, kv_heads), mesh, tensor)}')
    mixes = 'mixes_logits' in encoding.traits
    if mixes and mesh_parts(mesh, tensor) > 1:
        name = owner_of('mixes_logits', encoding)
        raise ValueError(
            f'{name} mixes the heads, which cannot be cut into {mesh_parts(mesh, tensor)} parts; '
            'use mesh.tensor=1'
        )
    keys, parts = k.shape[2 if heads_first else 1], mesh.shape['sequence']
    cut = parts > 1 and keys % parts == 0 and not mixes
    # The keys of a cache stay on their devices, and all devices have the queries.
    stay = cut and heads_first
    axis: Any = ROLES['sequence']
    sequence = None if heads_first or q.shape[1] == 1 else axis
    # An axis of one device is named too: over the axes that a spec leaves out, `shard_map` sums the
    # gradients, which would be a copy of those of all keys and values.
    along = axis if stay or cut and sequence or parts == 1 else None
    if cut and sequence:
        own.update(axis_name=along, applied_outside=True)

    graphdef, state = nnx.split(encoding)
    variables, structure = jax.tree.flatten(state)
    variable_specs = [
        PartitionSpec(
            *(
                ROLES[r] if r in ('heads', 'kv_heads') else None
                for r in variable.get_metadata().get('axes') or ()
            )
        )
        for variable in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    ]

    def token_specs(tok, along):
        lead = lambda a: (rows if a.shape[0] > 1 else None, along)

        def feature(path, a):
            if a.ndim < 3 or a.shape[2] not in (1, heads, kv_heads):
                raise ValueError(
                    f'feature {jax.tree_util.keystr(path)} has shape {a.shape}; expected [#B, L, '
                    f'heads, ...] with 1, {heads} or '
                    f'{kv_heads} heads'
                )
            return PartitionSpec(*lead(a), tensor if a.shape[2] > 1 else None)

        plain = jax.tree.map(lambda a: PartitionSpec(*lead(a)), tok.without_feats())
        return plain.with_feats(**jax.tree_util.tree_map_with_path(feature, tok.feats))

    key_spec = PartitionSpec(rows, *((tensor, along) if heads_first else (along, tensor)))
    query_spec = PartitionSpec(rows, sequence, tensor)
    check_cut(mesh, 'queries', q.shape, query_spec)

    same = 'axis_name' in own and tq.index is tk.index

    def local(variables, q, k, v, tq, tk):
        if same:  # said again, since the arrays of a part are others
            tk = dataclasses.replace(tk, index=tq.index)
        encoding = nnx.merge(graphdef, jax.tree.unflatten(structure, variables))
        if stay:
            from posenc_jax.attention.split_cache import attend_parts

            results = attend_parts(encoding, q, k, v, tq, tk, axis)
            return results if return_lse else encoding.rescale(*results, tq)
        return attend(encoding, q, k, v, tq, tk, **own)

    return jax.shard_map(
        local,
        in_specs=(
            variable_specs,
            query_spec,
            key_spec,
            key_spec,
            token_specs(tq, sequence),
            token_specs(tk, along),
        ),
        out_specs=(query_spec, query_spec) if return_lse else query_spec,
        check_vma=False,  # doors may make arrays that are not marked as varying
    )(variables, q, k, v, tq, tk)

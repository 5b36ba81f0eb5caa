"""The attention layer, and attention of given queries and keys, as Flax Linen modules; and a base
for Linen modules of other NNX modules.

    layer = posenc_jax.linen.Attention('rope()', width=64, heads=4)
    variables = layer.init(jax.random.key(0), x)
    y = layer.apply(variables, x)

x is [B, T, 64], and so is y.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from posenc_jax.layer.attention import Attention as _Attention
from posenc_jax.layer.own_projections import EncodedAttention as _EncodedAttention
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.errors import check_choice, nearest

__all__ = ['Attention', 'Bridge', 'EncodedAttention']
__dir__ = __all__.copy


class Bridge(nn.Module):
    """A Linen module that computes what an NNX module computes. A subclass says which, by `build`.

    The variables of the NNX module lie in the collections of Linen: 'params' has those of the class
    `nnx.Param`, and the others lie in a collection with the name of their class. All keys are
    strings. A variable with `axes` is boxed in `nn.LogicallyPartitioned` with these names, which
    `nn.get_partition_spec`, `nn.unbox` and the axis rules of Linen read.

    A call takes the arguments of the NNX module. `nnx_method` names another method of it.

    Raises:
      ValueError: `apply` with variables that are missing, unknown or of another shape, or with an
        unknown `nnx_method`. A `Constant` may be missing unless it was drawn at random.

    Example:
      >>> class Line(Bridge):
      ...     width: int
      ...
      ...     def build(self, rngs):
      ...         return nnx.Linear(self.width, 3, rngs=rngs)
      >>> variables = Line(width=2).init(jax.random.key(0), jnp.ones((1, 2)))
      >>> jax.tree.map(jnp.shape, variables)
      {'params': {'bias': (3,), 'kernel': (2, 3)}}
    """

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new NNX module, whose parameters are drawn from `rngs`."""
        raise NotImplementedError(f'{type(self).__name__} must define build(self, rngs)')

    def _builder(self, args: tuple) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes the module for a call with these arguments."""
        return self.build

    @nn.compact
    def __call__(self, *args, nnx_method: str | Callable = '__call__', **kwargs):
        """The result of a method of the NNX module."""
        assert self.scope is not None  # Linen calls compact methods of bound modules only
        streams: dict[str, Any] = {name: self.make_rng(name) for name in self.scope.rngs}
        build = self._builder(args)
        if self.is_initializing():
            graphdef, state = nnx.split(build(nnx.Rngs(**streams)))
            self._store(state, but={})
        else:  # the parameters that are drawn here are replaced
            graphdef, state = nnx.split(build(nnx.Rngs(default=0, **streams)))
            state = self._restored(state, build)
        # The merged module has variables of its own, so an encoding that was given stays as it is.
        module = nnx.merge(graphdef, state)
        before = {name: variable.get_value() for name, (_, variable) in _named(state).items()}
        result = _method(type(module), nnx_method)(module, *args, **kwargs)
        if not self.is_initializing():
            self._store(nnx.state(module), but=before)
        return result

    def _store(self, state: nnx.State, but: dict):
        """Writes the variables whose values are not those of `but`, where Linen allows it."""
        boxes = {
            name: _boxed(variable)
            for name, (_, variable) in _named(state).items()
            if self.is_mutable_collection(name[0]) and but.get(name) is not variable.get_value()
        }
        for collection, tree in unflatten_dict(boxes).items():
            for key, value in tree.items():
                self.put_variable(collection, key, value)

    def _restored(self, state: nnx.State, build: Callable) -> nnx.State:
        """The state with the values that `apply` was given. Keys of lists may be integers there."""
        own = _named(state)
        given: dict[tuple[str, ...], Any] = {
            (collection, *map(str, path)): value
            for collection in {name[0] for name in own}
            for path, value in flatten_dict(nn.unbox(self.variables.get(collection, {}))).items()
        }
        self._check(own, given, build)
        flat = dict(nnx.to_flat_state(state))
        flat |= {path: v.replace(given[name]) for name, (path, v) in own.items() if name in given}
        return nnx.from_flat_state(flat)

    def _check(self, own: dict, given: dict, build: Callable):
        where = type(self).__name__ + (f' at {"/".join(self.path)!r}' if self.path else '')
        joined = lambda names: sorted('/'.join(name) for name in names)
        unknown = joined(given.keys() - own.keys())
        for name in sorted(own.keys() - given.keys()):
            path, variable = own[name]
            if not isinstance(variable, Constant) or _is_drawn(build, path):
                also = f', but have {unknown[0]!r}' if unknown else ''
                raise ValueError(
                    f'{where}: the variables lack {"/".join(name)!r} of shape '
                    f'{variable.get_value().shape}{also}'
                )
        if unknown:
            raise ValueError(
                f'{where} has no variable {unknown[0]!r}; {nearest(unknown[0], joined(own))}'
            )
        for name, value in given.items():
            expected = own[name][1].get_value().shape
            if jnp.shape(value) != expected:
                raise ValueError(
                    f'{where}: {"/".join(name)!r} has shape {jnp.shape(value)}, expected {expected}'
                )


class Attention(Bridge):
    """`posenc_jax.Attention` as a Linen module; the arguments are the same, without `rngs`.

    A call, `start` and `step` take the arguments of those of `posenc_jax.Attention`. Parameters are
    drawn from the key of `init`.

    Example:
      >>> layer, x = Attention('rope()', width=8, heads=2), jnp.ones((1, 5, 8))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> layer.apply(variables, x).shape
      (1, 5, 8)
      >>> cache = layer.apply(variables, 1, 5, method='start')
      >>> y, cache = layer.apply(variables, x[:, :3], cache, method='step')
      >>> tuple(nn.get_partition_spec(variables)['params']['projections']['w_q'])
      ('width', 'heads', 'head_dim')
    """

    encoding: str | Encoding
    width: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = True
    train_len: int | None = None
    bias: str = 'none'
    block: int | None = None
    implementation: str | None = None

    def build(self, rngs: nnx.Rngs) -> _Attention:
        """The NNX layer."""
        names = inspect.signature(_Attention).parameters.keys() - {'rngs'}
        return _Attention(**{name: getattr(self, name) for name in names}, rngs=rngs)

    def start(self, *args, **kwargs):
        """An empty cache, see `posenc_jax.Attention.start`."""
        return self(*args, nnx_method='start', **kwargs)

    def step(self, *args, **kwargs):
        """The result for new tokens behind a cache, see `posenc_jax.Attention.step`."""
        return self(*args, nnx_method='step', **kwargs)


class EncodedAttention(Bridge):
    """`posenc_jax.EncodedAttention` as a Linen module, for whole sequences: attention with an
    encoding, for a layer with projections of its own. It takes the place of what rotates queries
    and keys, and of the softmax. `Attention` has a cache.

    A call takes the layer input [B, L, D], queries [B, L, heads, H], keys and values
    [B, L, kv_heads, H], and the `Tokens` of all of them; it returns [B, L, heads, H]. The sizes are
    those of the arrays, and the variables are those of the encoding.

    Attributes:
      encoding, causal, train_len, block, implementation: as for `Attention`.

    Raises:
      ValueError: an encoding that acts before the projections, such as on token vectors (`embed`),
        which `pj.linen.Attention` serves.

    Example:
      >>> layer, x, q = EncodedAttention('rope()'), jnp.ones((1, 5, 8)), jnp.ones((1, 5, 2, 4))
      >>> layer.init_with_output(jax.random.key(0), x, q, q, q)[0].shape
      (1, 5, 2, 4)
    """

    encoding: str | Encoding
    causal: bool = True
    train_len: int | None = None
    block: int | None = None
    implementation: str | None = None

    def _builder(self, args):
        x, query, key = args[:3]
        names = 'encoding', 'causal', 'train_len', 'block', 'implementation'
        options = {name: getattr(self, name) for name in names}
        (heads, head_dim), kv_heads = query.shape[2:], key.shape[2]
        sizes = dict(width=x.shape[-1], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        return lambda rngs: _EncodedAttention(**options, **sizes, rngs=rngs)


def _named(state: nnx.State) -> dict[tuple[str, ...], tuple[tuple, nnx.Variable]]:
    """Paths and variables of a state by their names in Linen, (collection, key, ...). Streams of
    random keys are left out.
    """
    return {
        (nnx.variable_name_from_type(type(v), allow_register=True), *map(str, path)): (path, v)
        for path, v in nnx.to_flat_state(state)
        if not isinstance(v, nnx.RngState)
    }


def _boxed(variable: nnx.Variable):
    """The value of a variable, boxed with the roles of its axes if it has them. Dimensions in front
    that `axes` does not name are those of a stack of layers.
    """
    axes, value = variable.get_metadata().get('axes'), variable.get_value()
    if axes is None:
        return value
    return nn.LogicallyPartitioned(value, (None,) * (value.ndim - len(axes)) + tuple(axes))


def _is_drawn(build: Callable[[nnx.Rngs], nnx.Module], path: tuple) -> bool:
    """Whether the constructor draws the variable at a path, so that it cannot be computed again.
    An array which depends on the key has an axis of keys under `vmap`, which `out_axes=None`
    refuses.
    """
    value = lambda key: dict(nnx.to_flat_state(nnx.state(build(nnx.Rngs(key)))))[path].get_value()
    try:
        jax.eval_shape(jax.vmap(value, out_axes=None), jax.random.split(jax.random.key(0)))
    except ValueError:
        return True
    return False


def _method(cls: type, method: str | Callable) -> Callable:
    """A method of a class by its name, or `method` itself if it is a function."""
    if not isinstance(method, str):
        return method
    names = [name for name, _ in inspect.getmembers(cls, callable) if name[0] != '_']
    return getattr(cls, check_choice(f'{cls.__name__}: nnx_method', method, (*names, '__call__')))

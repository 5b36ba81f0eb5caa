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

from posenc_jax.attention.attend import attend
from posenc_jax.language.make import make
from posenc_jax.layer.attention import Attention as _Attention
from posenc_jax.layer.mixer import layer_rows
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.errors import check_choice, nearest
from posenc_jax.protocol.tokens import Tokens

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

    @nn.compact
    def __call__(self, *args, nnx_method: str | Callable = '__call__', **kwargs):
        """The result of a method of the NNX module."""
        assert self.scope is not None  # Linen calls compact methods of bound modules only
        streams: dict[str, Any] = {name: self.make_rng(name) for name in self.scope.rngs}
        if self.is_initializing():
            graphdef, state = nnx.split(self.build(nnx.Rngs(**streams)))
            self._store(state, but={})
        else:  # the parameters that are drawn here are replaced
            graphdef, state = nnx.split(self.build(nnx.Rngs(default=0, **streams)))
            state = self._restored(state)
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

    def _restored(self, state: nnx.State) -> nnx.State:
        """The state with the values that `apply` was given. Keys of lists may be integers there."""
        own = _named(state)
        given: dict[tuple[str, ...], Any] = {
            (collection, *map(str, path)): value
            for collection in {name[0] for name in own}
            for path, value in flatten_dict(nn.unbox(self.variables.get(collection, {}))).items()
        }
        self._check(own, given)
        flat = dict(nnx.to_flat_state(state))
        flat |= {path: v.replace(given[name]) for name, (path, v) in own.items() if name in given}
        return nnx.from_flat_state(flat)

    def _check(self, own: dict, given: dict):
        where = type(self).__name__ + (f' at {"/".join(self.path)!r}' if self.path else '')
        joined = lambda names: sorted('/'.join(name) for name in names)
        unknown = joined(given.keys() - own.keys())
        for name in sorted(own.keys() - given.keys()):
            path, variable = own[name]
            if not isinstance(variable, Constant) or _is_drawn(self.build, path):
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
    """Attention with an encoding, for a Linen layer with projections of its own. It takes the place
    of what rotates queries and keys, and of the softmax.

    A call takes queries [B, L, heads, H], keys and values [B, L, kv_heads, H], and the `Tokens` of
    both, and the input of the layer [B, L, D] for encodings that read it (`fox`); it returns
    [B, L, heads, H]. The variables are those of the encoding.

    Attributes:
      encoding, causal, train_len: as for `Attention`.
      heads, head_dim, kv_heads: sizes of the queries and keys; `kv_heads` is `heads` by default.
      model_dim: width of the layer, for encodings that ask for it.

    Raises:
      ValueError: an encoding that also acts elsewhere, such as on token vectors (`embed`), which
        `pj.linen.Attention` serves; or one that reads the input of the layer and does not get it.

    Example:
      >>> layer, q = EncodedAttention('rope()', heads=2, head_dim=4), jnp.ones((1, 5, 2, 4))
      >>> layer.init_with_output(jax.random.key(0), q, q, q, Tokens.of(length=5))[0].shape
      (1, 5, 2, 4)
    """

    encoding: str | Encoding
    heads: int
    head_dim: int
    kv_heads: int | None = None
    model_dim: int | None = None
    causal: bool = True
    train_len: int | None = None

    def build(self, rngs: nnx.Rngs) -> '_Encoded':
        """The NNX module."""
        names = 'heads', 'head_dim', 'kv_heads', 'model_dim', 'train_len'
        sizes = {name: size for name in names if (size := getattr(self, name)) is not None}
        return _Encoded(make(self.encoding, causal=self.causal, **sizes, rngs=rngs))


class _Encoded(nnx.Module):
    def __init__(self, encoding: Encoding):
        self.encoding = encoding

    def __call__(self, query, key, value, tokens: Tokens, x=None):
        rows = None if x is None else layer_rows(x, tokens.valid, self.encoding.lookback)
        q, k, v, tq, tk = self.encoding.project(query, key, value, tokens, tokens, rows)
        return attend(self.encoding, q, k, v, tq, tk, applied=['project'])


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

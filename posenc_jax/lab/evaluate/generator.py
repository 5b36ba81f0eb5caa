"""Generation on a mesh, whose devices share the rows, the heads and the slots of the cache."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model.inputs import encoded_source
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.sharding import placed, whole_rows

Generator = Callable[..., Int[np.ndarray, 'B new']]


def generator(model: Transformer, mesh: Mesh | None = None) -> Generator:
    """`generate` of a model.

    The result is called as `new_tokens(prompts, max_new_tokens=..., ...)`, with the arguments of
    `generate` apart from the model, positions and capacity. `source` is the result of `source_of`.
    It returns the new tokens alone.

    Args:
      model: as for `generate`.
      mesh: see `layer.sharding.make_mesh`. Every process has the whole result. Where the mesh does
        not divide the rows, rows are repeated. Prompts are padded on the left and the cache has
        empty slots at its end, so that mesh.sequence divides both. None uses the device of the
        parameters.
    """
    if mesh is not None and mesh.size > 1:
        graphdef, state = nnx.split(model)
        model = nnx.merge(graphdef, placed(state, mesh))
    encoded = nnx.jit(encoded_source)

    def new_tokens(prompts, *, source=None, **options):
        source = None if source is None else encoded(model, source)
        new = generate(model, prompts, source=source, **options)[:, prompts.shape[1] :]
        return np.asarray(new)

    if mesh is None or mesh.size == 1:
        return new_tokens

    def on_mesh(prompts, *, max_new_tokens, valid=None, source=None, **options):
        batch, divisor = len(prompts), mesh.shape['sequence']
        if front := -prompts.shape[1] % divisor:
            valid = np.ones(prompts.shape, bool) if valid is None else valid
            prompts, valid = (np.pad(a, [(0, 0), (front, 0)]) for a in (prompts, valid))
        total, rows = prompts.shape[1] + max_new_tokens, whole_rows(mesh, batch)
        dealt = lambda a: np.resize(a, (rows, *a.shape[1:])) if len(a) == batch else a
        prompts, valid, source = jax.tree.map(dealt, (prompts, valid, source))
        options |= dict(max_new_tokens=max_new_tokens, capacity=total + -total % divisor)
        with jax.set_mesh(mesh):
            return new_tokens(prompts, valid=valid, source=source, **options)[:batch]

    return on_mesh

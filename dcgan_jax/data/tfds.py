"""Sets of tensorflow-datasets that `tfds build` wrote to disk. Only the TFRecord format needs TensorFlow to read."""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dcgan_jax.data import cars
from dcgan_jax.data.items import Item, Source
from dcgan_jax.errors import UserError

PREFIX = "tfds:"
_KINDS = {"celeb_a": "celeba", "svhn_cropped": "svhn", "cars196": "cars"}
_SPLITS = {"valid": "validation", "val": "validation"}
_FORMATS = ("array_record", "parquet", "tfrecord")  # in order of preference
_BATCH = 128  # records at a time; single ones take 5 to 30 times as long in array_record


def tfds_kind(source: str) -> str:
    """Returns the kind of the set `tfds:NAME`, which sets the default crop."""
    return _KINDS.get(_name(source), "folder")


def tfds_set(source: str, kind: str, data_dir: str | None = None) -> Source:
    """Returns a set of tensorflow-datasets in its own splits. Nothing is downloaded.

    Images come from the feature `image`, or from the only image feature. Labels come from the feature `label`, or from
    the only class label. Attributes come from the feature `attributes` (celeb_a). The photographs of cars196 are
    cropped to their boxes. The records are read in order, a few at a time.

    Args:
        source: `tfds:celeb_a`, `tfds:svhn_cropped`, `tfds:cars196` or another set. `/CONFIG` and `:VERSION` may follow.
        kind: one of `config.SOURCE_KINDS`.
        data_dir: folder or bucket of the sets. None uses the default of tensorflow-datasets.

    Raises:
        UserError: the set or a package that reads it is missing, or the set has no 8-bit images.
    """
    info, file_format = _find(source, data_dir)
    image, label = _feature(info, "Image", "image"), _feature(info, "ClassLabel", "label")
    if image is None:
        raise UserError(f"{source} has no 8-bit images, only {', '.join(info.features)}: give another set")
    boxed = _name(source) == "cars196"
    splits = {
        split: _open_records(source, part, file_format) for split, part in info.splits.items() if part.num_examples
    }
    items = []
    for order, (split, records) in enumerate(splits.items()):
        labels: Sequence[int] = [-1] * len(records)
        cuts: Sequence[Callable[[Image.Image], Image.Image] | None] = [None] * len(records)
        if label is not None:
            labels = [example[label].int64_list.value[0] for example in _examples(source, records)]
        if boxed:
            boxes = [tuple(example["bbox"].float_list.value) for example in _examples(source, records)]
            cuts = [functools.partial(cut_fractions, box=box) for box in boxes]
        items += [
            Item(
                f"{split}/{i:06d}",
                functools.partial(_read_image, records, i, image),
                _SPLITS.get(split, split),
                labels[i] if labels[i] >= 0 else None,
                (order, i),
                cuts[i],
            )
            for i in range(len(records))
        ]
    class_names = [] if label is None else list(info.features[label].names)
    attributes = None
    if "attributes" in info.features:
        attributes = functools.partial(
            _read_attributes, source, list(splits.values()), list(info.features["attributes"])
        )
    return Source(kind, items, class_names, True, attributes, cars.CUT if boxed else None)


def cut_fractions(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Crops a photograph of cars196 to its box: top, left, bottom and right edge as fractions of its sides.

    The fractions are the official numbers divided by height and width. These count pixels from 1, and a box includes
    its last pixel.
    """
    y1, y2 = (round(edge * image.height) for edge in box[::2])
    x1, x2 = (round(edge * image.width) for edge in box[1::2])
    return cars.cut_box(image, (x1 - 1, y1 - 1, x2, y2))


def _name(source: str) -> str:
    return re.split("[/:]", source.removeprefix(PREFIX))[0]


def _find(source: str, data_dir: str | None) -> tuple[Any, str]:
    """Returns tensorflow-datasets' description of a set on disk, and the file format to read."""
    try:
        from tensorflow_datasets import builder_from_directory
        from tensorflow_datasets.core import DatasetNotFoundError
        from tensorflow_datasets.core.constants import DATA_DIR
        from tensorflow_datasets.core.read_only_builder import builder_from_files
    except ImportError as error:
        raise UserError(f"reading {source} needs tensorflow-datasets: pip install 'dcgan-jax[tfds]'") from error
    name, place = source.removeprefix(PREFIX), data_dir or DATA_DIR
    build = f"tfds build {name} --file_format array_record --data_dir {place}"
    try:
        builder = builder_from_files(name, data_dir=place)
    except DatasetNotFoundError:
        raise UserError(f"there is no {name} in {place}: build it with `{build}`, or give its `data_dir`") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(f"{source} in {place} cannot be opened ({reason}): build it again with `{build}`") from error
    there = {file_format.value for file_format in builder.info.available_file_formats()} or {"tfrecord"}
    file_format = next((known for known in _FORMATS if known in there), None)
    if file_format is None:
        raise UserError(f"{source} is stored as {', '.join(there)}: build it again with `{build}`")
    if file_format == "tfrecord":
        try:
            # Not a dependency: only this format needs it.
            import tensorflow  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"{source} in {place} is stored as TFRecord: install tensorflow, or build it again with `{build}`"
            ) from error
    return builder_from_directory(builder.data_dir, file_format=file_format).info, file_format


def _feature(info: Any, kind: str, usual: str) -> str | None:
    """Returns the feature of a kind that has the usual name, else the only feature of this kind; None without one."""
    from tensorflow_datasets import features

    found = [name for name, feature in info.features.items() if isinstance(feature, getattr(features, kind))]
    if kind == "Image":
        found = [name for name in found if info.features[name].np_dtype == np.uint8]
    return usual if usual in found else found[0] if len(found) == 1 else None


class _Forward:
    """Records that are read in order. Going back reads again from the first record."""

    def __init__(self, start: Callable[[], Iterator[bytes]], count: int) -> None:
        self._start, self._count = start, count
        self._records, self._next = start(), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        if index < self._next:
            self._records, self._next = self._start(), 0
        record = next(itertools.islice(self._records, index - self._next, None), None)
        self._next = index + 1
        if record is None:
            raise EOFError(f"the files end before record {index} of {self._count}")
        return record


def _open_records(source: str, part: Any, file_format: str) -> _Forward:
    """Opens the records of a split; each is a serialised `tf.train.Example`."""
    files = [instruction.filename for instruction in part.file_instructions]
    try:
        stored = sum(map(_parquet_rows, files)) if file_format == "parquet" else part.num_examples
    except Exception as error:
        raise UserError(f"{source}: split {part.name} cannot be read ({error}): build the set again") from error
    if stored != part.num_examples:
        # tensorflow-datasets 4.9.10 loses records if it writes more than 100 to one parquet file.
        raise UserError(
            f"{source}: the parquet files hold {stored} of the {part.num_examples} records of split {part.name}: "
            "build the set again with `--file_format array_record`"
        )
    read = {"array_record": _array_records, "parquet": _parquet_records, "tfrecord": _tensorflow_records}[file_format]
    return _Forward(functools.partial(read, files), part.num_examples)


def _array_records(files: list[str]) -> Iterator[bytes]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(files) as records:
        for start in range(0, len(records), _BATCH):
            yield from records.__getitems__(range(start, min(start + _BATCH, len(records))))


def _parquet_rows(path: str) -> int:
    from etils import epath
    from pyarrow.parquet import ParquetFile

    with epath.Path(path).open("rb") as file, ParquetFile(file) as table:
        return table.metadata.num_rows


def _parquet_records(files: list[str]) -> Iterator[bytes]:
    from etils import epath
    from pyarrow.parquet import ParquetFile

    for path in files:
        with epath.Path(path).open("rb") as file, ParquetFile(file) as table:
            for batch in table.iter_batches(_BATCH):
                for record in batch.column(0):
                    yield record.as_py()


def _tensorflow_records(files: list[str]) -> Iterator[bytes]:
    import tensorflow as tf  # type: ignore[import-not-found]  # not a dependency, see `_find`

    with contextlib.suppress(RuntimeError):  # raised if TensorFlow has initialised its devices already
        tf.config.set_visible_devices([], "GPU")  # otherwise it takes all GPU memory
    yield from tf.data.TFRecordDataset(files).as_numpy_iterator()  # type: ignore[misc]  # TensorFlow has no types here


def _parse(record: bytes) -> Mapping[str, Any]:
    # tensorflow-datasets' `deserialize_example_np` takes 40 times as long on celeb_a's 50 features.
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature  # type: ignore[attr-defined]  # a generated class


def _examples(source: str, records: _Forward) -> Iterator[Mapping[str, Any]]:
    """Yields the parsed records of a split in order."""
    for i in range(len(records)):
        try:
            yield _parse(records[i])
        except Exception as error:
            raise UserError(f"{source}: record {i} cannot be read ({error}): build the set again") from error


def _read_image(records: _Forward, index: int, feature: str) -> bytes:
    return _parse(records[index])[feature].bytes_list.value[0]


def _read_attributes(source: str, splits: list[_Forward], names: list[str]) -> Mapping[str, np.ndarray]:
    """Reads the attributes of all records: name -> bool array over the records."""
    values = np.zeros((sum(map(len, splits)), len(names)), bool)
    examples = itertools.chain.from_iterable(_examples(source, records) for records in splits)
    for row, example in enumerate(examples):
        values[row] = [example[f"attributes/{name}"].int64_list.value[0] for name in names]
    return dict(zip(names, values.T, strict=True))

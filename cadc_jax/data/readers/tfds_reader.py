"""Reads a prepared TensorFlow Datasets (TFDS) data set in chunks, in the order it is stored in."""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cadc_jax.data import raw
from cadc_jax.data.raw import ReadReport
from cadc_jax.data.readers import files
from cadc_jax.data.readers.tabular import ColumnNames
from cadc_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds

CHUNK_ROWS = 1 << 16


def open_splits(
    name: str, splits: Mapping[int, str], columns: ColumnNames, data_dir: str | None = None
) -> raw.RawData:
    """Rows of a TFDS data set by the names of their columns.

    A row is malformed if its label is neither 0 nor 1, or its value no finite number.

    Args:
      name: of the data set, with its configuration: 'movielens/100k-ratings'.
      splits: TRAIN, VALIDATION or TEST -> the split to read; several are joined by '+'. With TRAIN
        alone, the split is left to the caller.
      columns: what is in them; `separator` and `header` mean nothing here.
      data_dir: as in `read_chunks`, whose errors reading raises.
    """
    plain = {kind: getattr(columns, kind) for kind in ("label", "value", "timestamp")}
    roles = {"user": columns.user, "item": columns.item, **plain}
    roles |= {raw.DENSE + column: column for column in columns.dense}
    roles |= {raw.CATEGORICAL + column: column for column in columns.categorical}
    roles = {role: column for role, column in roles.items() if column}

    def chunk(split: str, first: int, fold: int, values: Mapping[str, np.ndarray]) -> raw.Chunk:
        rows = raw.table_of({role: values[column] for role, column in roles.items()})
        good = np.ones(len(rows), bool)
        if "label" in roles:
            good &= np.isin(values[roles["label"]], (0, 1))
        if "value" in roles:
            good &= np.isfinite(values[roles["value"]])
        if len(splits) > 1:
            rows = rows.append_column("fold", pa.array(np.full(len(rows), fold, np.int8)))
        wrong = [f"{name}, {split}: row {first + row + 1}" for row in np.flatnonzero(~good)]
        examples = tuple(f"{row}: its label or value is out of range" for row in wrong[:5])
        kept = rows if good.all() else rows.filter(pa.array(good))
        return raw.Chunk(kept, ReadReport(len(kept), 0, len(wrong), examples))

    def tasks(split: str, fold: int) -> Iterator[raw.Task]:
        first = 0
        for values in read_chunks(name, split, data_dir, sorted(set(roles.values()))):
            count = len(next(iter(values.values())))
            decode = functools.partial(chunk, split, first, fold, values)
            yield raw.Task(count, decode)
            first += count

    parts = [(split, fold) for fold, joined in splits.items() for split in joined.split("+")]
    info = _open(name, data_dir, download=False).info
    sizes = [info.splits[x].num_examples if x in info.splits else 0 for x, _ in parts]
    return raw.RawData(
        f"TFDS data set '{name}'",
        [functools.partial(tasks, *part) for part in parts],
        sum(sizes),
        sizes=sizes,
    )


def stored_files(name: str, data_dir: str | None = None) -> list[pathlib.Path]:
    """The files of a prepared data set, which stand for it in a fingerprint; errors as above."""
    folder = pathlib.Path(_open(name, data_dir, download=False).data_dir)
    return sorted(path for path in folder.iterdir() if path.is_file())


def read_chunks(
    name: str,
    split: str,
    data_dir: str | None = None,
    columns: Sequence[str] | None = None,
    download: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of one split: shard by shard, the same order in every run.

    Args:
      name: of the data set, with its configuration: 'movielens/100k-ratings'. One that another
        program prepared needs no code here, only its folder.
      split: such as 'train' or 'train[:10%]'.
      data_dir: the folder of prepared data sets; None: TFDS' own (~/tensorflow_datasets).
      columns: the features to read; None: all scalar ones.
      download: let TFDS fetch and prepare what is not there.

    Yields:
      name -> [at most CHUNK_ROWS]: text as unicode, integers, flags and class labels as int64,
      other numbers as float32.

    Raises:
      ConfigError: no such data set or column; a column that is no scalar (a sequence, an image).
      DataError: the data set is not prepared, or not stored as TFRecords; no such split; text that
        is not UTF-8.
    """
    import tensorflow as tf

    info = _open(name, data_dir, download).info
    if split.partition("[")[0] not in info.splits:
        raise DataError(
            f"TFDS data set '{name}' has no split '{split}'; there are {', '.join(info.splits)}"
        )
    columns = _scalars(name, info.features, columns)
    parts = info.splits[split].file_instructions
    names = [str(part.filename) for part in parts]
    bounds = np.array([(part.skip, part.take) for part in parts], np.int64)
    records = tf.data.Dataset.from_tensor_slices((names, bounds)).flat_map(
        lambda file, bound: tf.data.TFRecordDataset(file).skip(bound[0]).take(bound[1])
    )
    stored = {
        column: tf.io.FixedLenFeature((), _stored(info.features[column])) for column in columns
    }
    # TFDS itself would parse one record after another, which takes ten times as long.
    chunks = records.batch(CHUNK_ROWS).map(lambda batch: tf.io.parse_example(batch, stored))
    for chunk in chunks.prefetch(1).as_numpy_iterator():
        yield {column: _plain(name, column, chunk[column]) for column in columns}


def _open(name: str, data_dir: str | None, download: bool) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a prepared data set."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:  # its text lists every data set there is
        raise ConfigError(
            f"no TFDS data set '{name}': it is not in {data_dir or 'the TFDS folder'}, and TFDS "
            "knows none of this name; prepare it with `tfds build`, or name its folder"
        ) from error
    if download:
        builder.download_and_prepare()
    if not builder.is_prepared():
        raise DataError(
            f"TFDS data set '{name}' is not prepared in {builder.data_dir}: run `tfds build`, name "
            "the folder that holds it, or allow the download"
        )
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"TFDS data set '{name}' in {builder.data_dir} is stored as "
            f"{builder.info.file_format.value}: prepare it with `tfds build --file_format=tfrecord`"
        )
    return builder


def _scalars(
    name: str, features: "tfds.features.FeaturesDict", columns: Sequence[str] | None
) -> list[str]:
    """Returns the columns to read, all of them scalar."""
    scalars = [column for column, feature in features.items() if feature.shape == ()]
    for column in columns or ():
        if column not in features:
            raise ConfigError(
                f"TFDS data set '{name}' has no column '{column}'; there are {', '.join(features)}"
                f"{files.nearest(column, features)}"
            )
        if column not in scalars:
            raise ConfigError(
                f"column '{column}' of TFDS data set '{name}' is not a scalar but "
                f"{features[column]}; these are: {', '.join(scalars)}"
            )
    return scalars if columns is None else list(columns)


def _stored(feature: "tfds.features.FeatureConnector") -> "tf.DType":
    """Returns the type in which a record holds a scalar: records have only three."""
    import tensorflow as tf

    kind = feature.get_serialized_info().tf_dtype
    return kind if kind == tf.string else tf.float32 if kind.is_floating else tf.int64


def _plain(name: str, column: str, values: np.ndarray) -> np.ndarray:
    """Returns text as unicode, and other values as they are."""
    if values.dtype == object:
        try:
            return np.array([value.decode() for value in values])
        except UnicodeDecodeError as error:
            raise DataError(
                f"column '{column}' of TFDS data set '{name}' is not UTF-8 text ({error})"
            ) from error
    return values

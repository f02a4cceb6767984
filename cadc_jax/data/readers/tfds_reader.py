"""Reads a prepared TensorFlow Datasets (TFDS) data set in chunks, in the stored order."""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import raw
from cadc_jax.data.raw import Values
from cadc_jax.data.readers.tabular import ColumnNames
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime import text
from cadc_jax.runtime.host_tensorflow import leave_accelerators

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds

CHUNK_ROWS = 1 << 16  # at most
_CHUNK_BYTES = 1 << 26


def open_splits(
    name: str, splits: Mapping[int, str], columns: ColumnNames, data_dir: str | None = None
) -> raw.RawData:
    """Opens splits of a TFDS data set as raw rows.

    A row is malformed if its label is neither 0 nor 1, or its value is not a finite number.

    Args:
      name: the data set and its configuration, such as 'movielens/100k-ratings'.
      splits: TRAIN, VALIDATION or TEST -> the splits to read, joined by '+'. With TRAIN alone the
        rows have no fold, and the caller splits them.
      columns: names of the columns; `separator` and `header` are not used.
      data_dir: as for `read_chunks`.

    Raises:
      ConfigError, DataError: as `read_chunks`, when opened or when read.
    """
    plain = {kind: getattr(columns, kind) for kind in ("label", "value", "timestamp")}
    roles = {"user": columns.user, "item": columns.item, **plain}
    roles |= {raw.DENSE + column: column for column in columns.dense}
    roles |= {raw.CATEGORICAL + column: column for column in columns.categorical}
    roles = {role: column for role, column in roles.items() if column}

    def tasks(split: str, fold: int | None) -> Iterator[raw.Task]:
        first = 1
        for values in read_chunks(name, split, data_dir, sorted(set(roles.values()))):
            rows = {role: values[column] for role, column in roles.items()}
            decode = functools.partial(_chunk, f"{name}, {split}: row", first, rows, fold)
            count = len(next(iter(values.values())))
            yield raw.Task(count, decode)
            first += count

    own_split = len(splits) > 1
    parts = [
        (split, fold if own_split else None)
        for fold, joined in splits.items()
        for split in joined.split("+")
    ]
    info = _open(name, data_dir, download=False).info
    sizes = [info.splits[x].num_examples if x in info.splits else 0 for x, _ in parts]
    return raw.RawData(
        f"TFDS data set '{name}'",
        [functools.partial(tasks, *part) for part in parts],
        sum(sizes),
        sizes=sizes,
    )


def stored_files(name: str, data_dir: str | None = None) -> list[pathlib.Path]:
    """Returns the files of a prepared data set, for its fingerprint.

    Args:
      name, data_dir: as for `open_splits`.

    Raises:
      ConfigError: no such data set.
      DataError: it is not prepared, or not stored as TFRecords.
    """
    folder = pathlib.Path(_open(name, data_dir, download=False).data_dir)
    return sorted(path for path in folder.iterdir() if path.is_file())


def read_chunks(
    name: str,
    split: str,
    data_dir: str | None = None,
    columns: Sequence[str] | None = None,
    download: bool = False,
) -> Iterator[dict[str, Values]]:
    """Yields the rows of one split, shard by shard, in the same order in every run.

    Args:
      name: the data set and its configuration, such as 'movielens/100k-ratings'. A data set that
        another program prepared needs no code here, only its folder.
      split: such as 'train' or 'train[:10%]'.
      data_dir: the folder of prepared data sets; None: the default of TFDS,
        ~/tensorflow_datasets.
      columns: the features to read; None: all scalar ones.
      download: let TFDS download and prepare a data set that is not there.

    Yields:
      name -> [at most CHUNK_ROWS]: text in Arrow, integers, flags and class labels as int64,
      other numbers as float32.

    Raises:
      ConfigError: no such data set or column; a column that is not scalar (a sequence, an image).
      DataError: the data set is not prepared, or not stored as TFRecords; no such split; text that
        is not UTF-8.
    """
    import tensorflow as tf

    leave_accelerators()
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
    schema = {
        column: tf.io.FixedLenFeature((), _record_type(info.features[column])) for column in columns
    }
    # TFDS would parse the records one by one, which takes ten times as long.
    rows = _rows_of_chunk(info.splits[split.partition("[")[0]])
    chunks = records.batch(rows).map(lambda batch: tf.io.parse_example(batch, schema))
    for chunk in chunks.prefetch(1).as_numpy_iterator():
        yield {column: _decoded(name, column, chunk[column]) for column in columns}


def _rows_of_chunk(split: "tfds.core.SplitInfo") -> int:
    """Rows that take about `_CHUNK_BYTES` as they are stored."""
    row_bytes = split.num_bytes // max(split.num_examples, 1)
    return max(1, min(CHUNK_ROWS, _CHUNK_BYTES // max(row_bytes, 1)))


def _chunk(where: str, first: int, columns: Mapping[str, Values], fold: int | None) -> raw.Chunk:
    """A chunk of the rows that have a valid label and value.

    Args:
      where: precedes the number of a row in messages.
      first: number of the first row.
      columns: name of a column in the chunk -> [N] values.
      fold: TRAIN, VALIDATION or TEST for all rows, or None for a chunk without folds.
    """
    rows = raw.table_of(columns)
    good = np.ones(len(rows), bool)
    if "label" in columns:
        good &= np.isin(columns["label"], (0, 1))
    if "value" in columns:
        good &= np.isfinite(columns["value"])
    if fold is not None:
        rows = rows.append_column("fold", pa.array(np.full(len(rows), fold, np.int8)))
    malformed = np.flatnonzero(~good)
    examples = tuple(
        f"{where} {first + row}: its label or value is out of range" for row in malformed[:5]
    )
    kept = rows if good.all() else rows.filter(pa.array(good))
    report = raw.ReadReport(len(kept), malformed=len(malformed), examples=examples)
    return raw.Chunk(kept, report)


def _open(name: str, data_dir: str | None, download: bool) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a prepared data set."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:  # its text lists all data sets
        raise ConfigError(
            f"no TFDS data set '{name}': it is not in {data_dir or 'the TFDS folder'}, and TFDS "
            "does not know the name; prepare it with `tfds build`, or name its folder"
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
    """The columns to read, checked to be scalars."""
    scalars = [column for column, feature in features.items() if feature.shape == ()]
    for column in columns or ():
        if column not in features:
            raise ConfigError(
                f"TFDS data set '{name}' has no column '{column}'{text.nearest(column, features)}; "
                f"there are {', '.join(features)}"
            )
        if column not in scalars:
            raise ConfigError(
                f"column '{column}' of TFDS data set '{name}' is not a scalar but "
                f"{features[column]}; the scalars are {', '.join(scalars)}"
            )
    return scalars if columns is None else list(columns)


def _record_type(feature: "tfds.features.FeatureConnector") -> "tf.DType":
    """The type of a scalar in a record, which has only three types."""
    import tensorflow as tf

    kind = feature.get_serialized_info().tf_dtype
    return kind if kind == tf.string else tf.float32 if kind.is_floating else tf.int64


def _decoded(name: str, column: str, values: np.ndarray) -> Values:
    """Decodes text; other values stay unchanged."""
    if values.dtype == object:
        try:
            return pc.cast(pa.array(values, pa.large_binary()), raw.TEXT)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"column '{column}' of TFDS data set '{name}' is not UTF-8 text ({error})"
            ) from error
    return values

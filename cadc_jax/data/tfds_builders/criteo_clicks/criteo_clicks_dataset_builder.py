"""The Criteo click logs as a TensorFlow Datasets data set, with rows in the order of the logs.

Run in this folder, with the logs in another folder:

    tfds build --config=kaggle --manual_dir=/path/to/logs
    tfds build --config=terabyte --manual_dir=/path/to/logs --beam_pipeline_options=runner=...

`tfds build` needs mlcroissant, and the terabyte logs need apache-beam, too. All Beam workers must
see the logs and this package.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cadc_jax.data import vocabulary
from cadc_jax.data.readers import criteo
from cadc_jax.errors import DataError

_SUFFIXES = ("", ".gz", ".zst")
Example = Mapping[str, Any]


@dataclasses.dataclass(kw_only=True)
class ClickLogs(tfds.core.BuilderConfig):
    """One release of the logs.

    Attributes:
      files: split -> name of its file, to which '.gz' or '.zst' may be added.
      beam: prepare the data with Apache Beam, because it is too large for one process.
    """

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beam: bool = False


class Builder(tfds.core.GeneratorBasedBuilder):
    """Prepares logs from the manual folder; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Rows in the order of the logs, missing values marked."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Criteo gives the logs for research under its own terms, which you have to accept; see
    https://ailab.criteo.com/ressources/. Put into the manual folder, as text or with .gz or .zst:
      kaggle: train.txt of the Display Advertising Challenge;
      terabyte: day_0 to day_23 of the Criteo 1 TB click logs.
    """
    BUILDER_CONFIGS = [
        ClickLogs(
            name="kaggle",
            description="Seven days; the rows of train.txt, which have labels.",
            files={"train": "train.txt"},
        ),
        ClickLogs(
            name="terabyte",
            description="24 days, a split for each, prepared with Apache Beam.",
            files={f"day_{day}": f"day_{day}" for day in range(24)},
            beam=True,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"label": tfds.features.Scalar(np.int64, doc="1: the ad was clicked.")}
        for name in criteo.DENSE:
            features[name] = tfds.features.Scalar(np.float32, doc="A count; missing: NaN.")
        for name in criteo.CATEGORICAL:
            features[name] = tfds.features.Scalar(np.int64, doc="A hashed value; missing: -1.")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://ailab.criteo.com/ressources/",
            disable_shuffling=True,  # splits by time need the order of the logs
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {
            split: self._generate_examples(_find(dl_manager.manual_dir, name))
            for split, name in self.builder_config.files.items()
        }

    def _generate_examples(self, path: epath.Path) -> Any:
        """Returns an iterator of (row number, example), or a Beam transform that makes them."""
        if not self.builder_config.beam:
            return (example for chunk in _rows(path) for example in _examples(chunk))
        beam = tfds.core.lazy_imports.apache_beam
        return (
            beam.Create([path])
            | beam.FlatMap(_rows)
            | beam.Reshuffle()  # one worker reads a file, all workers write its rows
            | beam.FlatMap(_examples)
        )


def _find(folder: epath.Path, name: str) -> epath.Path:
    for suffix in _SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    raise DataError(
        f"{folder}: no file '{name}', '{name}.gz' or '{name}.zst'; set --manual_dir to the folder "
        "of the logs"
    )


def _rows(path: epath.Path) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (number of the first row, name -> [n] values) of each chunk of a log."""
    start = 0
    source = criteo.open_logs([os.fspath(path)])
    for task in itertools.chain.from_iterable(part() for part in source.parts):
        chunk = task.decode()
        if chunk.report.malformed:
            raise DataError(f"{chunk.report.examples[0]}; mend or remove such rows")
        columns = {}
        for name, column in zip(chunk.rows.column_names, chunk.rows.columns, strict=True):
            values = vocabulary.values_of(column)
            columns[name.rpartition("/")[2]] = (
                values.astype(np.int64) if name == "label" else values
            )
        yield start, columns
        start += len(chunk.rows)


def _examples(chunk: tuple[int, dict[str, np.ndarray]]) -> Iterator[tuple[int, Example]]:
    start, columns = chunk
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    for number, row in enumerate(rows, start):
        yield number, dict(zip(columns, row, strict=True))

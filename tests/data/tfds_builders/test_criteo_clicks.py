"""The TFDS builder of the Criteo logs: the rows of the reader, in order, without and with Beam."""

import gzip
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cadc_jax.configuration import data_folder
from cadc_jax.data.readers import criteo, synthetic, tfds_reader
from cadc_jax.data.tfds_builders.criteo_clicks import criteo_clicks_dataset_builder as clicks
from cadc_jax.errors import DataError

SAMPLE = data_folder() / "criteo-sample"


def prepare(tmp_path: Path, config: str, **options) -> tfds.core.DatasetBuilder:
    """Prepares the logs of `tmp_path`/logs in `tmp_path`/tfds, with three shards for each split."""
    builder = clicks.Builder(config=config, data_dir=tmp_path / "tfds")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=tmp_path / "logs", num_shards=3, **options
        )
    )
    return builder


def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def assert_same_rows(tmp_path: Path, config: str, split: str, log: Path) -> None:
    table = criteo.read_logs([log])
    chunks = list(tfds_reader.read_chunks(f"criteo_clicks/{config}", split, str(tmp_path / "tfds")))
    found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    assert set(found) == set(criteo.FIELDS)
    np.testing.assert_array_equal(found["label"], table.label)
    for name, values in (table.dense | table.categorical).items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_rows_are_the_rows_of_the_reader_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo.open_logs, "__defaults__", (None, 60_000))  # bytes: several chunks
    log = logs(tmp_path) / "train.txt"
    synthetic.write_criteo(log, 1000, seed=0)
    builder = prepare(tmp_path, "kaggle")
    assert builder.info.splits["train"].num_examples == 1000
    assert builder.info.splits["train"].num_shards == 3
    assert_same_rows(tmp_path, "kaggle", "train", log)
    first = next(builder.as_dataset("train").as_numpy_iterator())
    assert first["label"] == criteo.read_logs([log]).label[0]


@pytest.mark.parametrize("name", ["train.txt", "head_8k.txt.gz"])
def test_real_rows_are_the_rows_of_the_reader(tmp_path, name):
    if not (SAMPLE / name).exists():
        pytest.skip(f"no {SAMPLE / name}")
    log = logs(tmp_path) / name.replace("head_8k", "train")
    shutil.copy(SAMPLE / name, log)
    prepare(tmp_path, "kaggle")
    assert_same_rows(tmp_path, "kaggle", "train", log)


@pytest.mark.slow
def test_every_day_is_a_split_prepared_by_beam(tmp_path):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("apache_beam is not installed")
    from apache_beam.options.pipeline_options import PipelineOptions

    folder = logs(tmp_path)
    for day in range(24):
        synthetic.write_criteo(folder / f"day_{day}", 20 + day, seed=day)
    day_23 = gzip.compress((folder / "day_23").read_bytes())
    (folder / "day_23").unlink()
    (folder / "day_23.gz").write_bytes(day_23)
    builder = prepare(tmp_path, "terabyte", beam_options=PipelineOptions(["--runner=DirectRunner"]))
    for day in range(24):
        assert builder.info.splits[f"day_{day}"].num_examples == 20 + day
    assert_same_rows(tmp_path, "terabyte", "day_7", folder / "day_7")
    assert_same_rows(tmp_path, "terabyte", "day_23", folder / "day_23.gz")


def test_a_missing_log_is_named(tmp_path):
    (logs(tmp_path) / "test.txt").touch()
    with pytest.raises(DataError, match="no file 'train.txt', 'train.txt.gz'"):
        prepare(tmp_path, "kaggle")


def test_the_data_set_describes_itself(tmp_path):
    info = clicks.Builder(config="terabyte", data_dir=tmp_path).info
    assert info.full_name == "criteo_clicks/terabyte/1.0.0"
    assert "missing integer is NaN" in info.description
    assert "Criteo" in info.citation
    assert list(clicks.Builder.builder_configs) == ["kaggle", "terabyte"]

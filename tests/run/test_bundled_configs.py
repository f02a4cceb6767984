import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cadc_jax import experiment
from cadc_jax.data.readers import synthetic
from cadc_jax.errors import ConfigError
from cadc_jax.run import bundled_configs, stages
from cadc_jax.run.context import Run
from tests.small_runs import quiet


def test_each_use_of_a_configuration_that_comes_along_is_a_new_copy():
    assert {"criteo", "epinions", "movielens_1m"} <= set(bundled_configs.configs())
    bundled_configs.config("criteo").rate = 0.123
    assert bundled_configs.config("criteo").rate == 0.1


def test_a_file_that_is_no_configuration_is_an_error_with_the_flag(tmp_path):
    path = tmp_path / "own.py"
    for text, why in (("1 / 0", "ZeroDivisionError"), ("x = 1", "KeyError: 'get_config'")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"^--with={path}: cannot be used: {why}"):
            bundled_configs.read(str(path), "--with=")
    with pytest.raises(ConfigError, match="^--with=configs/criteos.py: no such file, did you mean"):
        bundled_configs.read("configs/criteos.py", "--with=")
    assert bundled_configs.read("configs/criteo.py", "").name == "criteo"


def test_the_configuration_of_yambda_reads_files_of_its_schema(tmp_path):
    """uid, timestamp and item_id are uint32, is_organic is uint8."""
    rng = np.random.default_rng(0)
    user, item = np.unique(rng.integers(0, [50, 200], (3000, 2)), axis=0).T
    when = rng.permutation(len(user)) * 5
    columns = {"uid": user + 1000, "timestamp": when, "item_id": item + 7}
    table = {name: pa.array(np.uint32(x)) for name, x in columns.items()}
    table["is_organic"] = pa.array(np.uint8(when % 2))
    parquet.write_table(pa.table(table), tmp_path / "likes.parquet")
    config = bundled_configs.config("yambda")
    config.data.path, config.autoencoder.factors = str(tmp_path), 8
    config.train.update(batch_rows=64, max_evaluations=1)
    experiment.run(Run(config, tmp_path / "work", quiet))
    rows = json.loads((tmp_path / "work" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["popularity", "mf_alone", "cadc_frozen"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["criteo_accelerator", "criteo_terabyte"])
def test_a_configuration_for_accelerators_runs_on_rows_that_are_made_up(name, tmp_path):
    config = bundled_configs.config(name)
    assert config.train.batch_rows >= 16384 and config.train.compute_dtype == "bfloat16"
    config.data.update(folder="nothing/there", synthetic_rows=3000, min_count=1)
    config.train.update(max_evaluations=1, evaluation_steps=1, steps_per_call=1)
    config.sgd.epochs = 1
    said = []
    experiment.run(Run(config, tmp_path, said.append))
    assert any("3,000 SYNTHETIC rows" in line for line in said)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {"popularity", "mf_alone", "sample", "cadc_frozen"} <= {row["arm"] for row in rows}
    assert all(0 < row["metrics"]["auc"] < 1 for row in rows)


def test_rows_made_up_for_given_files_are_those_of_one_log_in_order(tmp_path):
    config = bundled_configs.config("criteo_terabyte")
    config.data.update(folder="nothing/there", synthetic_rows=700)
    days = stages.raw_data(Run(config, tmp_path, quiet))
    assert sorted(x.name for x in days.iterdir()) == ["day_22", "day_23", "train.txt"]
    parts = [(days / name).read_bytes() for name in ("train.txt", "day_22", "day_23")]
    assert [part.count(b"\n") for part in parts] == [500, 100, 100]
    synthetic.write_criteo(tmp_path / "one.txt", 700, config.seed)
    assert b"".join(parts) == (tmp_path / "one.txt").read_bytes()

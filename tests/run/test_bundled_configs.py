import json

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cadc_jax import experiment
from cadc_jax.run import bundled_configs
from cadc_jax.run.context import Run
from tests.small_runs import quiet


def test_each_use_of_a_configuration_that_comes_along_is_a_new_copy():
    assert {"criteo", "epinions", "movielens_1m"} <= set(bundled_configs.configs())
    bundled_configs.config("criteo").rate = 0.123
    assert bundled_configs.config("criteo").rate == 0.1


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

"""Losses of a proxy and times of rows, by which rules choose training rows."""

import types

import numpy as np
import pytest

from cadc_jax import configuration
from cadc_jax.data import prepare
from cadc_jax.data.readers import registry
from cadc_jax.data.table import open_table, read_columns, write_columns
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.study import samples
from cadc_jax.study.cells import Cell, SkipCell
from tests.study.conftest import study_of

ROWS = {"user": np.array([0, 1, 1], np.int32), "item": np.array([0, 0, 1], np.int32)}
TABLES = {
    "user": np.array([[1.0, 0.0], [0.5, 2.0]], np.float32),
    "item": np.array([[1.0, 1.0], [0.0, 0.5]], np.float32),
}
SCORES = np.array([1.0, 2.5, 1.0])


def factors(folder, **more):
    write_columns(folder, TABLES | more)
    return Artifact(folder, "f1", {}, 0.0, False)


def test_the_loss_of_als_is_squared(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_PAIR_BLOCK", 2)  # the last block is shorter
    config = types.SimpleNamespace(factorization="als")
    found = samples.proxy_loss(config, factors(tmp_path), ROWS)
    np.testing.assert_allclose(found, (1 - SCORES) ** 2, rtol=1e-6)


def test_the_loss_of_sgd_is_logistic(tmp_path):
    biases = {"user_bias": np.zeros(2), "item_bias": np.array([0.0, 1.0]), "global_bias": 0.5}
    biases = {name: np.asarray(x, np.float32) for name, x in biases.items()}
    label = np.array([1, 0, 1])
    config = types.SimpleNamespace(factorization="sgd")
    found = samples.proxy_loss(config, factors(tmp_path, **biases), ROWS | {"label": label})
    p = 1 / (1 + np.exp(-(SCORES + [0.5, 0.5, 1.5])))
    np.testing.assert_allclose(found, -np.log(np.where(label, p, 1 - p)), rtol=1e-5)


def test_the_time_of_rows_in_order_is_their_place(tmp_path):
    config = study_of(tmp_path, "criteo").config(Cell("criteo", "popularity"))
    table = types.SimpleNamespace(splits={"train": ROWS})
    assert samples.times(config, tmp_path, table).tolist() == [0, 1, 2]


def test_folding_in_is_skipped_without_als(tmp_path):
    config = study_of(tmp_path, "criteo").config(Cell("criteo", "mf_alone"))
    assert config.factorization == "sgd"
    with pytest.raises(SkipCell, match="needs the factorisation 'als'"):
        samples.folded_factors(types.SimpleNamespace(config=config), None)


def test_the_time_of_a_movielens_row_is_that_of_its_rating(tmp_path):
    movielens = pytest.importorskip("tests.data.readers.test_movielens")
    ratings = [(u, i, 100 * u + i) for u in range(1, 7) for i in range(1, 9) if (u + i) % 4]
    lines = "".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in ratings)
    users = "".join(f"{u}|30|F|none|00000\n" for u in range(1, 7))
    items = "".join(movielens.item_100k(i, f"Film {i} (1999)", "Drama") + "\n" for i in range(1, 9))
    movielens.write(tmp_path, "100k", u_data=lines, u_user=users, u_item=items)
    config = study_of(tmp_path, "movielens_100k").config(Cell("movielens_100k", "popularity"))
    config.data.update(path=str(tmp_path), num_negatives=1)
    folder = tmp_path / "prepared"
    folder.mkdir()
    source = registry.open_raw_data("movielens", tmp_path, config.data.to_dict())
    prepare.write_table(folder, source, configuration.prepare_config(config))
    table = open_table(folder)
    train, names = table.splits["train"], read_columns(folder / "vocabularies")
    expected = 100 * names["user"][train["user"] - 1] + names["item"][train["item"] - 1]
    assert len(expected) == len(ratings) - 12  # two of each of the six users are held out
    np.testing.assert_array_equal(samples.times(config, folder, table), expected)

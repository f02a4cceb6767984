"""Factors of the unsampled rows: where they come from, and who trains and predicts with them."""

import json

import jax
import numpy as np
import pytest

from cadc_jax import configuration, experiment
from cadc_jax.data import sampling
from cadc_jax.data.table import open_table, write_columns
from cadc_jax.factorization import als
from cadc_jax.factorization.factors import principal_axes
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.run import factors, stages
from cadc_jax.run.context import Run
from cadc_jax.runtime.artifacts import materialize
from tests.small_runs import click_config, quiet, ranking_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of the ranking task, in which the network stays as it starts."""
    path = tmp_path_factory.mktemp("unsampled")
    config = ranking_config(path / "raw")
    config.arms, config.factor_rows = ("cadc_frozen",), "unsampled"
    config.factor_bits = 32
    config.train.learning_rate = config.train.table_learning_rate = 0.0
    run = Run(config, path / "work", quiet)
    experiment.run(run)
    return run, stages.prepare_stage(run, stages.raw_data(run))


def test_unsampled_factors_come_from_the_training_rows_that_the_sample_does_not_keep(made):
    run, prepared = made
    table = open_table(prepared.path)
    train, sizes = table.splits["train"], (table.schema.num_users, table.schema.num_items)
    config = configuration.factorization_config(run.config)
    rest = ~sampling.keep(np.arange(len(train["user"])), run.config.rate, run.config.seed)
    part = Interactions.from_rows(train["user"][rest], train["item"][rest], *sizes)
    whole = Interactions.from_rows(train["user"], train["item"], *sizes)
    first, _ = als.fit(part, config, jax.random.key(run.config.seed))
    first = principal_axes(first)
    last, _ = als.fit(
        whole, config.refreshing(factors.REFRESH_PASSES), jax.random.key(0), init=first
    )
    path = factors.factorize_stage(run, prepared).path
    for folder, expected in ((path / factors.UNSAMPLED, first), (path, last)):
        for name in ("user", "item"):
            found = getattr(factors.open_factors(folder), name)
            table = getattr(expected, name)
            signs = np.sign(np.sum(found * table, axis=0))  # an axis may point either way
            np.testing.assert_allclose(found, signs * table, rtol=1e-3, atol=1e-3)


def test_an_untrained_network_predicts_as_the_factors_of_all_rows_do(made):
    run, _ = made
    rows = json.loads((run.workdir / "results.json").read_text())["rows"]
    metrics = {row["arm"]: row["metrics"] for row in rows}
    assert metrics["cadc_frozen"] == pytest.approx(metrics["mf_alone"])
    assert metrics["popularity"] != metrics["mf_alone"]


def test_another_rate_makes_other_factors(made):
    run, prepared = made
    before = factors.factorize_stage(run, prepared)
    config = run.config.copy_and_resolve_references()
    config.rate = 0.5
    other = factors.factorize_stage(Run(config, run.workdir, quiet), prepared)
    assert before.reused and not other.reused
    config.factor_rows = "all"
    whole = factors.factorize_stage(Run(config, run.workdir, quiet), prepared)
    assert not (whole.path / factors.UNSAMPLED).exists()


def test_a_log_of_clicks_is_factorised_in_the_same_two_parts(tmp_path):
    config = click_config()
    config.factor_rows = "unsampled"
    run = Run(config, tmp_path, quiet)
    experiment.run(run, last="factorize")
    (path,) = (tmp_path / "factorize").iterdir()
    whole, part = (np.load(p / "global_bias.npy") for p in (path, path / factors.UNSAMPLED))
    assert np.isfinite(whole) and whole != part


def test_rows_that_another_rule_keeps_can_be_left_out_instead(made, tmp_path):
    run, prepared = made
    uniform = stages.sample_stage(run, prepared)
    same = factors.factorize_stage(run, prepared, uniform)
    mine = factors.factorize_stage(run, prepared)
    for folder in (".", factors.UNSAMPLED):
        found, expected = (np.load(x.path / folder / "item.npy") for x in (same, mine))
        np.testing.assert_array_equal(found, expected)

    def write(folder):
        write_columns(folder, {"row": np.arange(10)})
        return {}

    first_ten = materialize(tmp_path, "sample", {}, write)
    other = factors.factorize_stage(run, prepared, first_ten)
    part = np.load(other.path / factors.UNSAMPLED / "item.npy")
    assert not np.allclose(part, np.load(mine.path / factors.UNSAMPLED / "item.npy"))

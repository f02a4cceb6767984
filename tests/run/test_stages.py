"""Factors of the unsampled rows: what they come from, and who trains and predicts with which."""

import json

import jax
import numpy as np
import pytest

from cadc_jax import configuration, experiment
from cadc_jax.data import sampling
from cadc_jax.data.table import open_table, write_columns
from cadc_jax.evaluation import evaluate
from cadc_jax.factorization import als
from cadc_jax.factorization.factors import principal_axes
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.run import stages
from cadc_jax.run.compressed import Inputs
from cadc_jax.runtime.artifacts import materialize
from tests.run.test_compressed import clicks_config, quiet, ranking_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of the ranking task, in which the network stays as it starts."""
    path = tmp_path_factory.mktemp("unsampled")
    config = ranking_config(path / "raw")
    config.arms, config.factor_rows = ("cadc_frozen",), "unsampled"
    config.train.learning_rate = config.train.table_learning_rate = 0.0
    run = stages.Run(config, path / "work", quiet)
    experiment.run(run)
    return run, stages.prepare_stage(run, stages.raw_data(run))


def test_they_are_those_of_the_training_rows_that_the_sample_does_not_keep(made):
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
        whole, config.refreshing(stages.REFRESH_PASSES), jax.random.key(0), init=first
    )
    path = stages.factorize_stage(run, prepared).path
    for folder, expected in ((path / stages.UNSAMPLED, first), (path, last)):
        for name in ("user", "item"):
            found, table = np.load(folder / f"{name}.npy"), getattr(expected, name)
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
    before = stages.factorize_stage(run, prepared)
    config = run.config.copy_and_resolve_references()
    config.rate = 0.5
    other = stages.factorize_stage(stages.Run(config, run.workdir, quiet), prepared)
    assert before.reused and not other.reused
    config.factor_rows = "all"
    whole = stages.factorize_stage(stages.Run(config, run.workdir, quiet), prepared)
    assert not (whole.path / stages.UNSAMPLED).exists()


def test_of_the_cores_of_a_cpu_als_takes_those_with_room_for_a_copy_and_training_one(
    tmp_path, monkeypatch
):
    run = stages.Run(ranking_config(tmp_path / "raw"), tmp_path, cores=True)
    matrix = Interactions.from_rows(np.array([0]), np.array([0]), 100, 10)
    assert stages.training_mesh(run).size == 1
    assert stages._als_mesh(run, matrix, 8).size == 8
    monkeypatch.setattr(stages, "COPIES_BYTES", 3 * 100 * 8 * 4)
    assert stages._als_mesh(run, matrix, 8).size == 3
    monkeypatch.setattr(stages, "COPIES_BYTES", 1)
    assert stages._als_mesh(run, matrix, 8).size == 1
    other = stages.Run(run.config, tmp_path)
    assert stages.training_mesh(other).size == stages._als_mesh(other, matrix, 8).size == 8


def test_a_log_of_clicks_is_factorised_in_the_same_two_parts(tmp_path):
    config = clicks_config()
    config.factor_rows = "unsampled"
    run = stages.Run(config, tmp_path, quiet)
    experiment.run(run, last="factorize")
    (path,) = (tmp_path / "factorize").iterdir()
    whole, part = (np.load(p / "global_bias.npy") for p in (path, path / stages.UNSAMPLED))
    assert np.isfinite(whole) and whole != part


def test_rows_that_another_rule_keeps_can_be_left_out_instead(made, tmp_path):
    run, prepared = made
    uniform = stages.sample_stage(run, prepared)
    same = stages.factorize_stage(run, prepared, uniform)
    mine = stages.factorize_stage(run, prepared)
    for folder in (".", stages.UNSAMPLED):
        found, expected = (np.load(x.path / folder / "item.npy") for x in (same, mine))
        np.testing.assert_array_equal(found, expected)

    def write(folder):
        write_columns(folder, {"row": np.arange(10)})
        return {}

    first_ten = materialize(tmp_path, "sample", {}, write)
    other = stages.factorize_stage(run, prepared, first_ten)
    part = np.load(other.path / stages.UNSAMPLED / "item.npy")
    assert not np.allclose(part, np.load(mine.path / stages.UNSAMPLED / "item.npy"))


@pytest.mark.parametrize("ranking", configuration.RANKINGS)
def test_the_best_step_is_chosen_by_the_ranking_that_is_configured(made, ranking):
    run, prepared = made
    config = run.config.copy_and_resolve_references()
    config.evaluation.ranking = ranking
    run = stages.Run(config, run.workdir, quiet)
    factors = stages.factorize_stage(run, prepared)
    inputs = Inputs(prepared, factors, stages.sample_stage(run, prepared))
    history = stages.train_stage(run, inputs, config.models[0], "cadc_frozen").facts["history"]
    table, score = open_table(prepared.path), experiment.factor_score(factors)
    if ranking == "full":
        expected = evaluate.evaluate_ranking_full(score, table, "validation", 10)
    else:
        expected = evaluate.evaluate_ranking_sampled(score, table.splits["validation"], 10)
    assert history[0]["validation"] == pytest.approx(list(expected.values())[1])

"""Cells of the study: their results on a small log."""

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest

from cadc_jax import configuration
from cadc_jax.data.table import open_table, read_columns
from cadc_jax.evaluation import evaluate
from cadc_jax.factorization import als
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.study import adapter, compute, data_report, paired, samples, selection
from cadc_jax.study.cells import Cell, SkipCell
from cadc_jax.study.rivals import item_weights, rankings, registry
from cadc_jax.study.settings import Study
from cadc_jax.tuning.trials import Log
from tests.study.conftest import study_of

UNIFORM = Cell("epinions", "cadc_frozen", "two_tower", "uniform", 0.25)


class Small(Study):
    """The studies of Epinions and of clicks, made small."""

    def config(self, cell):
        config = super().config(cell)
        config.data.path = str(self.out / "raw") if cell.data == "epinions" else ""
        config.data.num_negatives = 20
        config.data.synthetic_rows = 4000
        config.als.update(factors=8, iterations=2)
        config.sgd.epochs = 2
        config.train.update(batch_rows=64, max_evaluations=1, evaluation_steps=5)
        config.evaluation.max_users = 30
        return config


def quiet(line):
    del line


@pytest.mark.parametrize(("best_step", "converged"), [(0, True), (10, True), (20, False)])
def test_training_has_converged_after_as_many_evaluations_as_its_patience(best_step, converged):
    history = [{"step": step} for step in (0, 10, 20, 30)]
    assert compute.has_converged(history, best_step, patience=2) == converged


# Cells on a small log.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(study, rows by cell) of a log of 40 users and 60 items."""
    out = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.unique(rng.integers(0, [40, 60], (900, 2)), axis=0))
    (out / "raw").mkdir()
    lines = "".join(f"{user},{item}\n" for user, item in pairs)
    (out / "raw" / "interactions.csv.gz").write_bytes(
        gzip.compress(f"user_id,item_id\n{lines}".encode())
    )
    cells = [
        Cell("epinions", "popularity"),
        Cell("epinions", "mf_alone"),
        Cell("epinions", "mf_alone", seed=1),
        Cell("epinions", "ease"),
        Cell("epinions", "mf_alone", selection="fold_in"),
        Cell("epinions", "full", "two_tower"),
        UNIFORM,
    ]
    study = study_of(out, "epinions", kind=Small)
    return study, {cell: compute.run_cell(study, cell, quiet) for cell in cells}


def opened(small, cell=UNIFORM):
    """A run with the configuration of a cell, its prepared artefact, and the table in this."""
    study, _ = small
    run = adapter.open_run(study.config(cell), study.out / "work" / "epinions", quiet)
    prepared = adapter.prepare(run)
    return run, prepared, open_table(prepared.path)


@pytest.mark.slow
def test_the_metrics_of_a_row_are_those_of_its_users(small):
    study, rows = small
    report = data_report.gather(study.out, list(rows.values()))
    assert len(report.places) == 30 and len(report.groups) == 6
    for group in report.groups.values():
        assert group.values.mean(1) == pytest.approx(group.column("ndcg"), abs=1e-6)
        assert data_report.hit(group.few, 10).mean(1) == pytest.approx(group.column("hr_sampled"))


@pytest.mark.slow
def test_seeds_share_the_data_and_differ_in_their_factors(small):
    _, rows = small
    first, second = (rows[Cell("epinions", "mf_alone", seed=seed)] for seed in (0, 1))
    assert first["prepared"] == second["prepared"]
    assert first["evaluation"] != second["evaluation"] and first["ndcg"] != second["ndcg"]


@pytest.mark.slow
def test_a_row_has_the_costs_of_what_the_cell_used(small):
    _, rows = small
    total = len(opened(small)[2].splits["train"]["user"])
    full, frozen = rows[Cell("epinions", "full", "two_tower")], rows[UNIFORM]
    assert full["rows_used"] == total and 0.15 < frozen["rows_used"] / total < 0.35
    assert "sample_bytes" not in full and 0 < frozen["sample_bytes"] < frozen["train_bytes"]
    assert {"factorize_s", "sample_s"} <= frozen.keys() and "sample_s" not in full
    assert frozen["state_bytes"] > 0 and full["state_bytes"] > 0
    assert frozen["cell_s"] >= frozen["train_s"]


@pytest.mark.slow
def test_a_row_has_its_validation_and_the_metric_that_it_is_of(small):
    study, rows = small
    assert {row["validation_metric"] for row in rows.values()} == {"ndcg@10"}
    assert all(0 < row["validation"] < 1 for row in rows.values())


@pytest.mark.slow
def test_ease_is_tested_with_the_regularisation_that_validates_best(small):
    study, rows = small
    _, _, table = opened(small)
    row, matrix, quality = rows[Cell("epinions", "ease")], rankings.matrix_of(table), {}
    (file,) = (study.out / "trials").glob("epinions-ease-*.csv")
    trials = Log(["regularization"], file).results
    for (regularization,), _, score, _ in trials:
        scorer = rankings.scorer(matrix, item_weights.ease(matrix, regularization))
        ranked = evaluate.rank_users(scorer, table, "validation", 30)
        quality[regularization] = ranked.quality((10,))["ndcg@10"]
        assert score == pytest.approx(quality[regularization])
    best = max(quality, key=quality.get)
    assert min(quality.values()) < quality[best]
    chosen = json.loads(row["chosen"])
    assert chosen["settings"] == {"regularization": best} and chosen["trials"] == len(trials) > 3
    scorer = rankings.scorer(matrix, item_weights.ease(matrix, best))
    expected = evaluate.rank_users(scorer, table, "test", 30).quality((10,))["ndcg@10"]
    assert row["ndcg"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_test_and_its_search_are_reused(small):
    study, rows = small
    cell = Cell("epinions", "ease")
    again, chosen = compute.run_cell(study, cell, quiet), json.loads(rows[cell]["chosen"])
    assert again["evaluation"] == rows[cell]["evaluation"]
    for name in ("settings", "trials"):
        assert json.loads(again["chosen"])[name] == chosen[name]


@pytest.mark.slow
def test_factors_and_ease_are_those_of_the_same_rows(small):
    study, rows = small
    row = compute.run_cell(study, Cell("epinions", "mf_ease"), quiet)
    assert set(json.loads(row["chosen"])["settings"]) == {"regularization", "weight"}
    assert row["factors_bytes"] > 0 and row["factorize_s"] >= 0
    assert row["validation"] >= rows[Cell("epinions", "mf_alone")]["validation"] - 0.02


@pytest.mark.slow
def test_a_rival_is_skipped_if_there_are_too_many_items(small, monkeypatch):
    ease = dataclasses.replace(registry.RIVALS["ease"], most_items=10)
    monkeypatch.setattr(registry, "RIVALS", {"ease": ease})
    with pytest.raises(SkipCell, match="61 items are more than 10"):
        compute.run_cell(small[0], Cell("epinions", "ease"), quiet)


@pytest.mark.slow
def test_refreshed_factors_are_tested_beside_plain_ones(small):
    """A variant of a sweep that refreshes nothing has none."""
    study = dataclasses.replace(small[0], variants={"": {"factor_rows": "unsampled"}})
    cell = Cell("epinions", "mf_refreshed", "", "uniform", 0.25)
    row = compute.run_cell(study, cell, quiet)
    plain = compute.run_cell(study, Cell("epinions", "mf_alone"), quiet)
    assert row["evaluation"] != plain["evaluation"]
    assert plain["evaluation"] == small[1][Cell("epinions", "mf_alone")]["evaluation"]
    with pytest.raises(SkipCell, match="factor_rows='all'"):
        compute.run_cell(small[0], cell, quiet)


# Samples and factors on the same log.


@pytest.mark.slow
def test_the_hardest_rows_are_as_many_as_the_uniform_ones_and_have_the_highest_loss(small):
    cell = dataclasses.replace(UNIFORM, selection="hardest")
    run, prepared, table = opened(small, cell)
    found = samples.chosen_sample(run, cell, prepared)
    assert found.facts["rows"] == small[1][UNIFORM]["rows_used"] > 0
    train, ids = table.splits["train"], np.load(found.path / "row.npy")
    np.testing.assert_array_equal(np.load(found.path / "item.npy"), train["item"][ids])
    all_rows = adapter.with_changes(run, factor_rows="all")
    loss = samples.proxy_loss(run.config, adapter.factorize(all_rows, prepared), train)
    assert loss[ids].min() >= np.delete(loss, ids).max()


@pytest.mark.slow
def test_the_sample_for_folding_in_is_the_uniform_one_without_hidden_users(small):
    cell = dataclasses.replace(UNIFORM, selection="fold_in")
    run, prepared, table = opened(small, cell)
    found = np.load(samples.chosen_sample(run, cell, prepared).path / "row.npy")
    uniform = np.load(adapter.uniform_sample(run, prepared).path / "row.npy")
    hidden = selection.hidden_users(table.schema.num_users, cell.seed)
    removed = np.setdiff1d(uniform, found)
    assert len(removed) and set(found) <= set(uniform)
    user = table.splits["train"]["user"]
    assert hidden[user[removed]].all() and not hidden[user[found]].any()


@pytest.mark.slow
def test_hidden_users_are_folded_in_and_leave_no_trace_in_the_other_factors(small):
    """The others have the factors of a fit without the hidden users' rows.

    A hidden user with the items S has the factors x that solve
    (Y'Y + alpha * sum_S y y' + lambda I) x = (1 + alpha) * sum_S y.
    """
    cell = Cell("epinions", "mf_alone", selection="fold_in")
    run, prepared, table = opened(small, cell)
    found = read_columns(samples.folded_factors(run, prepared).path)
    sizes, train = (table.schema.num_users, table.schema.num_items), table.splits["train"]
    hidden = selection.hidden_users(sizes[0], cell.seed)
    user, item = np.asarray(train["user"]), np.asarray(train["item"])
    config, seen = (
        configuration.factorization_config(run.config, run.config.factorization),
        ~hidden[user],
    )
    matrix = Interactions.from_rows(user[seen], item[seen], *sizes)
    expected, _ = als.fit(matrix, config, jax.random.key(cell.seed))
    np.testing.assert_array_equal(found["item"], expected.item)
    np.testing.assert_array_equal(found["user"][~hidden], np.asarray(expected.user)[~hidden])
    y = np.asarray(found["item"], np.float64)
    penalty = config.regularization * np.sqrt(config.alpha) * matrix.extent.noise
    with_rows = [u for u in np.flatnonzero(hidden) if (user == u).any()]
    assert with_rows
    for u in with_rows:
        own = y[item[user == u]]
        a = y.T @ y + config.alpha * own.T @ own + penalty * np.eye(y.shape[1])
        x = np.linalg.solve(a, (1 + config.alpha) * own.sum(0))
        np.testing.assert_allclose(found["user"][u], x, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_log_without_time_has_no_most_recent_rows(small):
    cell = dataclasses.replace(UNIFORM, selection="recent")
    with pytest.raises(SkipCell, match="epinions has no timestamps"):
        compute.run_cell(small[0], cell, quiet)


@pytest.mark.slow
def test_the_truth_of_synthetic_clicks_predicts_their_labels_as_well_as_expected(tmp_path):
    study = study_of(tmp_path, "criteo", kind=Small)
    rows = [compute.run_cell(study, Cell("criteo", "popularity"), quiet)]
    report = data_report.gather(tmp_path, rows)

    expected = paired.bayes_auc(report.truth)
    assert paired.auc(report.labels, report.truth) == pytest.approx(expected, abs=0.05)
    popularity = report.baseline("popularity")
    assert report.quality(popularity, report.labels >= 0) == pytest.approx(rows[0]["auc"], abs=1e-5)
    assert rows[0]["auc"] < expected

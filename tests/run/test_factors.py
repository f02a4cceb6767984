"""Factors of the unsampled rows: where they come from, and who trains and predicts with them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cadc_jax import configuration, experiment, library
from cadc_jax.data import sampling
from cadc_jax.data.table import open_table, write_columns
from cadc_jax.factorization import als, autoencoder, blend
from cadc_jax.factorization.factors import balanced_axes, principal_axes
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.run import factor_files, factors, stages
from cadc_jax.run.context import Run
from cadc_jax.runtime.interrupts import Stop, Stopped
from cadc_jax.runtime.materialize import materialize
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
    config = configuration.factorization_config(run.config, run.config.factorization)
    rest = ~sampling.keep(np.arange(len(train["user"])), run.config.rate, run.config.seed)
    part = Interactions.from_rows(train["user"][rest], train["item"][rest], *sizes)
    whole = Interactions.from_rows(train["user"], train["item"], *sizes)
    first, _ = als.fit(part, config, jax.random.key(run.config.seed))
    first = principal_axes(first)
    last, _ = als.fit(
        whole, config.refreshing(factors.REFRESH_PASSES), jax.random.key(0), init=first
    )
    path = factors.factorize_stage(run, prepared).path
    for folder, expected in ((path / factor_files.UNSAMPLED, first), (path, last)):
        for name in ("user", "item"):
            found = getattr(factor_files.open_factors(folder), name)
            table = getattr(expected, name)
            signs = np.sign(np.sum(found * table, axis=0))  # an axis may point either way
            np.testing.assert_allclose(found, signs * table, rtol=1e-3, atol=1e-3)


def test_an_untrained_network_predicts_as_the_factors_of_all_rows_do(made):
    run, _ = made
    rows = json.loads((run.workdir / "results.json").read_text())["rows"]
    metrics = {row["arm"]: row["metrics"] for row in rows}
    assert metrics["cadc_frozen"] == pytest.approx(metrics["mf_refreshed"])
    assert metrics["mf_refreshed"] != metrics["mf_alone"] != metrics["popularity"]


def test_mf_alone_is_a_factorisation_of_all_rows_whatever_the_others_train_on(made, tmp_path):
    """It is found again, is not among the factors of the run, and only its own row pays for it."""
    run, prepared = made
    config = run.config.copy_and_resolve_references()
    config.factor_rows, config.arms = "all", ()
    expected = factors.factorize_stage(Run(config, tmp_path, quiet), prepared).path
    plain = factors.plain_factors(run, prepared)
    assert plain.reused and plain.path.parent == run.workdir / "plain" / "factorize"
    for name in ("user", "item"):
        found, wanted = (np.load(path / f"{name}.npy") for path in (plain.path, expected))
        np.testing.assert_array_equal(found, wanted)
    rows = json.loads((run.workdir / "results.json").read_text())["rows"]
    seconds = {row["arm"]: row["seconds"].get("factorize") for row in rows}
    refreshed = factors.factorize_stage(run, prepared).seconds
    assert seconds["mf_alone"] == pytest.approx(plain.seconds, abs=0.01)
    for arm in ("mf_refreshed", "cadc_frozen"):
        assert seconds[arm] == pytest.approx(refreshed, abs=0.01)


def test_no_plain_factors_are_made_unless_something_is_compared_with_them(made, tmp_path):
    run, _ = made
    experiment.run(dataclasses.replace(run, workdir=tmp_path), "train")
    assert (tmp_path / "train").exists() and not (tmp_path / factors.PLAIN).exists()


# By the linear autoencoder.


def encoded_config(folder):
    """The ranking task, factorised by the autoencoder."""
    config = ranking_config(folder)
    config.factorization, config.factor_bits = "autoencoder", 32
    config.autoencoder.update(factors=8, regularization=1.0)
    return config


def factorized(config, workdir):
    """The run, its prepared table, and the folder of its factors."""
    run = Run(config, workdir, quiet)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    return run, open_table(prepared.path), factors.factorize_stage(run, prepared).path


def matrix_of(table, rows=slice(None), split="train"):
    found = table.splits[split]
    sizes = table.schema.num_users, table.schema.num_items
    return Interactions.from_rows(found["user"][rows], found["item"][rows], *sizes)


def assert_same(found, expected):
    """The same factors, up to the direction of each axis."""
    signs = np.sign(np.sum(found.item * expected.item, axis=0))
    for name in ("user", "item", "encoder"):
        want = signs * np.asarray(getattr(expected, name))
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-3, atol=1e-4)


class Answers(Stop):
    """Says in turn whether the run is asked to end; later no."""

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def __call__(self):
        return next(self.answers, False)


def test_the_factors_of_the_autoencoder_are_those_of_the_training_rows(tmp_path):
    run, table, path = factorized(encoded_config(tmp_path / "raw"), tmp_path / "work")
    config = configuration.factorization_config(run.config, run.config.factorization)
    expected, _ = autoencoder.fit(matrix_of(table), config, jax.random.key(run.config.seed))
    found = factor_files.open_factors(path)
    assert_same(found, balanced_axes(principal_axes(expected)))
    assert found.encoder.shape == found.item.shape


def test_factors_of_all_rows_are_exact_for_the_encoder_of_the_unsampled_rows(tmp_path):
    config = encoded_config(tmp_path / "raw")
    config.factor_rows = "unsampled"
    run, table, path = factorized(config, tmp_path / "work")
    settings = configuration.factorization_config(run.config, run.config.factorization)
    rest = ~sampling.keep(np.arange(len(table.splits["train"]["user"])), config.rate, config.seed)
    part, key = matrix_of(table, rest), jax.random.key(config.seed)
    first = factor_files.open_factors(path / factor_files.UNSAMPLED)
    assert_same(first, balanced_axes(principal_axes(autoencoder.fit(part, settings, key)[0])))
    last = factor_files.open_factors(path)
    np.testing.assert_array_equal(last.encoder, first.encoder)
    assert_same(last, autoencoder.refresh(first.encoder, matrix_of(table), settings))
    assert not np.allclose(last.item, first.item, atol=1e-3)
    assert len(json.loads((path / "manifest.json").read_text())["facts"]["losses"]) == 1


def test_held_out_users_are_encoded_from_their_fold_in_rows(tmp_path):
    config = encoded_config(tmp_path / "raw")
    config.data.update(split="users", validation=0.2, test=0.2)
    _, table, path = factorized(config, tmp_path / "work")
    found = factor_files.open_factors(path)
    folded = np.asarray(autoencoder.fold_in(found, matrix_of(table, split="fold_in")))
    trained = np.asarray(autoencoder.fold_in(found, matrix_of(table)))
    held_out = np.unique(table.splits["fold_in"]["user"])
    others = np.setdiff1d(np.arange(len(found.user)), held_out)
    np.testing.assert_allclose(found.user[held_out], folded[held_out], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.user[others], trained[others], rtol=1e-4, atol=1e-5)
    assert folded[held_out].any(axis=1).all()


def test_a_factorisation_that_was_stopped_and_resumed_gives_the_same_bits(tmp_path):
    config = encoded_config(tmp_path / "raw")
    config.autoencoder.passes, config.factor_rows = 3, "unsampled"
    _, _, expected = factorized(config, tmp_path / "whole")
    # Asked between passes whether to end. It ends after the first, after the second, and between
    # the two factorisations.
    stop = Answers([False, True, False, True, False, False, True])
    run = Run(config, tmp_path / "work", quiet, stop=stop)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    for saved in (1, 2, 0):
        with pytest.raises(Stopped, match=f"step {saved} is saved"):
            factors.factorize_stage(run, prepared)
    path = factors.factorize_stage(run, prepared).path
    for file in expected.rglob("*.npy"):
        assert (path / file.relative_to(expected)).read_bytes() == file.read_bytes(), file


# Users held out whole.


def by_users(path, **als_settings):
    """A run of the ranking task with a split by users, up to its factors."""
    config = ranking_config(path / "raw")
    config.data.update(split="users", validation=0.2, test=0.2)
    config.factor_bits = 32
    config.als.update(**als_settings)
    run = Run(config, path / "work", quiet)
    experiment.run(run, last="factorize")
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    return run, open_table(prepared.path), factors.factorize_stage(run, prepared)


def test_vectors_of_held_out_users_are_folded_in_and_change_nothing_else(tmp_path):
    run, table, made = by_users(tmp_path)
    found = factor_files.open_factors(made.path)
    train, rows = table.splits["train"], table.splits["fold_in"]
    sizes = table.schema.num_users, table.schema.num_items
    config = configuration.factorization_config(run.config, run.config.factorization)
    matrix = Interactions.from_rows(train["user"], train["item"], *sizes)
    plain, _ = als.fit(matrix, config, jax.random.key(0))
    assert not np.asarray(plain.user)[np.unique(rows["user"])].any()
    # A basis of the items turns both tables alike; scores do not depend on it.
    turned = np.linalg.lstsq(np.asarray(plain.item), found.item, rcond=None)[0]
    plain = dataclasses.replace(plain, user=plain.user @ turned, item=plain.item @ turned)
    np.testing.assert_allclose(found.item, plain.item, rtol=1e-4, atol=1e-5)
    held_out = np.unique(rows["user"])
    others = np.setdiff1d(np.arange(sizes[0]), held_out)
    np.testing.assert_allclose(found.user[others], plain.user[others], rtol=1e-4, atol=1e-5)
    items = np.asarray(found.item, np.float64)
    penalty = config.regularization * np.sqrt(config.alpha) * matrix.extent.noise
    for user in held_out:  # the equation of implicit ALS, with items that training rows have
        own = items[rows["item"][rows["user"] == user]]
        own = own[own.any(axis=1)]
        left = items.T @ items + config.alpha * own.T @ own
        left += penalty * np.eye(items.shape[1])
        right = (1 + config.alpha) * own.sum(axis=0)
        expected = np.linalg.solve(left, right)
        np.testing.assert_allclose(found.user[user], expected, rtol=1e-3, atol=1e-4)


def test_explicit_feedback_folds_in_biases_from_the_values_of_the_rows(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    config = {"feedback": "explicit", "regularization": 0.1}
    _, table, made = by_users(path, **config)
    found = factor_files.open_factors(made.path)
    rows = table.splits["fold_in"]
    user, item = found.user.astype(np.float64), found.item.astype(np.float64)
    penalty = 0.1 * matrix_of(table).extent.user_mean
    for one in np.unique(rows["user"]):
        here = (rows["user"] == one) & (table.items["count"][rows["item"]] > 0)
        own = np.c_[item[rows["item"][here]], np.ones(here.sum())]
        rest = rows["value"][here] - found.item_bias[rows["item"][here]] - found.global_bias
        expected = np.linalg.solve(own.T @ own + penalty * np.eye(own.shape[1]), own.T @ rest)
        got = np.r_[user[one], found.user_bias[one]]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_both_sets_of_factors_have_vectors_of_held_out_users(tmp_path):
    config = ranking_config(tmp_path / "raw")
    config.data.update(split="users", validation=0.2, test=0.2)
    config.factor_rows = "unsampled"
    run = Run(config, tmp_path / "work", quiet)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    made = factors.factorize_stage(run, prepared)
    held_out = np.unique(open_table(prepared.path).splits["fold_in"]["user"])
    for folder in (made.path, made.path / factor_files.UNSAMPLED):
        assert np.load(folder / "user.npy")[held_out].any(axis=1).all()


# Stages.


def test_another_rate_makes_other_factors(made):
    run, prepared = made
    before = factors.factorize_stage(run, prepared)
    config = run.config.copy_and_resolve_references()
    config.rate = 0.5
    other = factors.factorize_stage(Run(config, run.workdir, quiet), prepared)
    assert before.reused and not other.reused
    config.factor_rows = "all"
    whole = factors.factorize_stage(Run(config, run.workdir, quiet), prepared)
    assert not (whole.path / factor_files.UNSAMPLED).exists()


def test_a_log_of_clicks_is_factorised_in_the_same_two_parts(tmp_path):
    config = click_config()
    config.factor_rows = "unsampled"
    run = Run(config, tmp_path, quiet)
    experiment.run(run, last="factorize")
    (path,) = (tmp_path / "factorize").iterdir()
    whole, part = (np.load(p / "global_bias.npy") for p in (path, path / factor_files.UNSAMPLED))
    assert np.isfinite(whole) and whole != part


def test_rows_that_another_rule_keeps_can_be_left_out_instead(made, tmp_path):
    run, prepared = made
    uniform = stages.sample_stage(run, prepared)
    same = factors.factorize_stage(run, prepared, uniform)
    mine = factors.factorize_stage(run, prepared)
    for folder in (".", factor_files.UNSAMPLED):
        found, expected = (np.load(x.path / folder / "item.npy") for x in (same, mine))
        np.testing.assert_array_equal(found, expected)

    def write(folder):
        write_columns(folder, {"row": np.arange(10)})
        return {}

    first_ten = materialize(tmp_path, "sample", {}, write)
    other = factors.factorize_stage(run, prepared, first_ten)
    part = np.load(other.path / factor_files.UNSAMPLED / "item.npy")
    assert not np.allclose(part, np.load(mine.path / factor_files.UNSAMPLED / "item.npy"))


# Factorisations side by side.


def test_factorisations_side_by_side_are_rounded_once(tmp_path):
    config = ranking_config(tmp_path / "raw")
    config.factorization, config.factor_bits = "autoencoder+als", 8
    run = Run(config, tmp_path / "work", quiet)
    made = factors.factorize_stage(run, stages.prepare_stage(run, stages.raw_data(run)))
    for path in (tmp_path / "work" / "factorize").iterdir():
        whole = path == made.path
        assert np.load(path / "user.npy").dtype == (np.int8 if whole else np.float32)


@pytest.mark.parametrize("factor_rows", ["all", "unsampled"])
def test_factorisations_side_by_side_are_joined_with_the_weights_of_the_manifest(
    tmp_path, factor_rows
):
    config = ranking_config(tmp_path / "raw")
    config.factorization, config.factor_rows, config.factor_bits = (
        "autoencoder+als",
        factor_rows,
        32,
    )
    config.autoencoder.factors = 5
    run = Run(config, tmp_path / "work", quiet)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    made = factors.factorize_stage(run, prepared)
    parts = []
    for name in ("autoencoder", "als"):
        config.factorization = name
        parts.append(factors.factorize_stage(run, prepared))
        assert parts[-1].reused
    weights = made.facts["weights"]
    assert weights[0] == 1 and weights[1] in blend.WEIGHTS
    whole = [factor_files.open_factors(part.path) for part in parts]
    scales = [blend.scale_of(*pair) for pair in zip(whole, weights, strict=True)]
    for folder in (".", factor_files.UNSAMPLED)[: 1 + (factor_rows == "unsampled")]:
        own = [factor_files.open_factors(part.path / folder) for part in parts]
        expected, found = blend.join(own, scales), factor_files.open_factors(made.path / folder)
        assert found.user.shape[1] == 5 + config.als.factors
        np.testing.assert_allclose(found.user, expected.user, rtol=1e-6)
        np.testing.assert_allclose(found.item, expected.item, rtol=1e-6)


# Values.


def valued_config(folder, value, method="als", scale="linear"):
    """The ranking task, whose row n has the value `value(n)`."""
    config = ranking_config(folder)
    lines = (folder / "log.csv").read_text().splitlines()
    rows = [f"{line},{value(number)}" for number, line in enumerate(lines[1:])]
    (folder / "log.csv").write_text("\n".join([f"{lines[0]},times", *rows]) + "\n")
    config.data.columns.value, config.data.value_scale = "times", scale
    config.factorization, config.factor_bits = method, 32
    config.autoencoder.update(factors=8)
    return config


def varied(number):
    return 5 if number % 3 else 1


def library_scores(run, table, method, value):
    """Scores of what the library makes of the training rows of a prepared table."""
    train, schema = table.splits["train"], table.schema
    found = library.factorize(
        np.asarray(train["user"]),
        np.asarray(train["item"]),
        schema.num_users,
        schema.num_items,
        configuration.factorization_config(run.config, method),
        value=value(np.asarray(train["value"])),
        seed=run.config.seed,
    )
    return found.user @ found.item.T


@pytest.mark.parametrize("method", ["als", "autoencoder"])
@pytest.mark.parametrize(
    ("scale", "value"),
    [("linear", lambda x: x), ("log", np.log1p), ("none", lambda x: None)],
)
def test_values_count_as_in_the_library(tmp_path, method, scale, value):
    config = valued_config(tmp_path / "raw", varied, method, scale)
    run, table, path = factorized(config, tmp_path / "work")
    found = factor_files.open_factors(path)
    want = library_scores(run, table, method, value)
    np.testing.assert_allclose(found.user @ found.item.T, want, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("method", ["als", "autoencoder"])
def test_a_value_of_5_changes_the_factors(tmp_path, method):
    scores = []
    for name, value in (("ones", lambda number: 1), ("varied", varied)):
        config = valued_config(tmp_path / name, value, method)
        found = factor_files.open_factors(factorized(config, tmp_path / f"{name} work")[2])
        scores.append(found.user @ found.item.T)
    assert np.abs(scores[0] - scores[1]).max() > 0.05


def test_values_of_kept_rows_are_in_the_users_of_an_encoder(tmp_path):
    config = valued_config(tmp_path / "raw", varied, "autoencoder")
    config.factor_rows = "unsampled"
    run = Run(config, tmp_path / "work", quiet)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    path = factors.factorize_stage(run, prepared).path
    whole, part = (factor_files.open_factors(x) for x in (path, path / factor_files.UNSAMPLED))
    train = open_table(prepared.path).splits["train"]
    wanted = np.zeros_like(whole.user)
    np.add.at(wanted, train["user"], train["value"][:, None] * part.encoder[train["item"]])
    np.testing.assert_allclose(whole.user, wanted, rtol=1e-3, atol=1e-3)


def test_sgd_says_that_it_uses_no_values(tmp_path):
    lines = []
    run = Run(valued_config(tmp_path / "raw", varied, "sgd"), tmp_path / "work", lines.append)
    stages.prepare_stage(run, stages.raw_data(run))
    assert any("factorization='sgd' counts every row once" in line for line in lines)

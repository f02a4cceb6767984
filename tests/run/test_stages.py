"""Stages: choices by the configured ranking, and models that are restored as they were saved."""

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.data import pipeline, sampling
from cadc_jax.data.table import Table, open_table, read_columns
from cadc_jax.evaluation import evaluate, resident, scorers
from cadc_jax.models import embeddings
from cadc_jax.run import stages
from cadc_jax.run.arms import TRAINED
from cadc_jax.run.compressed import Inputs
from cadc_jax.run.context import Run, training_mesh
from cadc_jax.run.factor_files import factor_tables
from cadc_jax.run.factors import factorize_stage
from tests.small_runs import quiet, ranking_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the ranking task, prepared, factorised and sampled."""
    path = tmp_path_factory.mktemp("stages")
    run = Run(ranking_config(path / "raw"), path / "work", quiet)
    prepared = stages.prepare_stage(run, stages.raw_data(run))
    factors = factorize_stage(run, prepared)
    return run, Inputs(prepared, factors, stages.sample_stage(run, prepared))


def test_runs_of_several_seeds_may_share_their_split(tmp_path):
    config = ranking_config(tmp_path / "raw")
    found = []
    for seed, own in ((0, -1), (1, 0), (1, -1)):
        config.seed, config.data.seed = seed, own
        run = Run(config, tmp_path / "work", quiet)
        found.append(stages.prepare_stage(run, stages.raw_data(run)).fingerprint)
    assert found[0] == found[1] != found[2]


def test_rows_that_are_merged_are_told(tmp_path):
    said, config = [], ranking_config(tmp_path / "raw")
    file = tmp_path / "raw/log.csv"
    file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")
    run = Run(config, tmp_path / "work", said.append)
    facts = stages.prepare_stage(run, stages.raw_data(run)).facts
    assert facts["merged_repeats"] == 1
    assert any("1 rows merged into others of the same user and item" in line for line in said)


@pytest.mark.parametrize("tensorflow", [True, False])
def test_the_sample_holds_the_rows_that_the_rule_keeps(made, tmp_path, monkeypatch, tensorflow):
    run, inputs = made
    if not tensorflow:
        monkeypatch.setattr(pipeline, "import_tf_data", lambda: None)
    sample = stages.sample_stage(Run(run.config, tmp_path, quiet), inputs.prepared)
    train = open_table(inputs.prepared.path).splits["train"]
    kept = np.flatnonzero(sampling.keep(np.arange(len(train["user"])), run.config.rate, 0))
    assert 0 < sample.facts["rows"] == len(kept) < len(train["user"])
    found = read_columns(sample.path)
    assert found.keys() == {"row", *train}
    np.testing.assert_array_equal(found["row"], kept, strict=True)
    for name, column in train.items():
        np.testing.assert_array_equal(found[name], column[kept], strict=True)


def test_a_finished_sample_needs_no_tensorflow(made, monkeypatch):
    run, inputs = made

    def refuse():
        raise AssertionError("TensorFlow takes seconds to import")

    monkeypatch.setattr(pipeline, "import_tf_data", refuse)
    assert stages.sample_stage(run, inputs.prepared).reused


@pytest.mark.parametrize("ranking", ["sampled", "full"])
def test_the_best_step_is_chosen_by_the_configured_ranking(made, ranking):
    """The network starts as the factorisation, whose quality is known."""
    run, inputs = made
    config = run.config.copy_and_resolve_references()
    config.evaluation.ranking = ranking
    run = Run(config, run.workdir, quiet)
    trained = stages.train_stage(run, inputs, config.models[0], TRAINED["cadc_frozen"])
    table = open_table(inputs.prepared.path)
    scorer = scorers.factors(*factor_tables(inputs.factors.path), calibrated=False)
    if ranking == "full":
        expected = evaluate.rank_users(scorer, table, "validation").quality((10,))["ndcg@10"]
    else:
        ranks = evaluate.ranks_sampled(scorer, table.splits["validation"])
        expected = evaluate.sampled_quality(ranks, (10,), 20)["ndcg@10/1+20"]
    assert trained.facts["history"][0]["validation"] == pytest.approx(expected)


@pytest.mark.parametrize(("arm", "own"), [("sample", True), ("cadc_trainable", False)])
def test_arms_whose_embeddings_start_at_random_have_settings_of_their_own(made, arm, own):
    run, inputs = made
    config = run.config.copy_and_resolve_references()
    config.random_start = (("train.table_optimizer", "sgd"), ("two_tower.scale", 3.0))
    trained = stages.train_stage(Run(config, run.workdir, quiet), inputs, "two_tower", TRAINED[arm])
    assert (trained.settings["train"]["table_optimizer"] == "sgd") == own
    assert (trained.settings["model"][1]["scale"] == 3.0) == own


@pytest.mark.parametrize("arm", ["sample", "cadc_frozen", "cadc_trainable"])
def test_a_restored_model_validates_as_it_did_when_it_was_saved(made, arm):
    run, inputs = made
    name, arm = run.config.models[0], TRAINED[arm]
    trained = stages.train_stage(run, inputs, name, arm)
    table = open_table(inputs.prepared.path)
    network = stages.configuration.make_model(run.config, name)
    params, tables = stages.restore(trained, arm, inputs.factors, network, table)
    content = embeddings.content_of(table)
    scorer = scorers.network(network, params, tables, content, training_mesh(run))
    options = stages.configuration.evaluation_config(run.config)
    best = max(entry["validation"] for entry in trained.facts["history"])
    quality = resident.validation(table, options, training_mesh(run))
    assert quality(scorer) == pytest.approx(best)


@pytest.mark.parametrize("arm", ["full", "sample", "cadc_frozen", "cadc_trainable"])
def test_training_reads_no_pairs_but_those_of_its_rows(made, tmp_path, monkeypatch, arm):
    """The known items of the table are all training rows. Validation among 1 + 20 needs none."""

    def refuse(table):
        raise AssertionError("training asks for pairs of other rows")

    monkeypatch.setattr(Table, "known_pairs", refuse)
    run, inputs = made
    config = run.config.copy_and_resolve_references()
    config.evaluation.ranking = "sampled"
    trained = stages.train_stage(Run(config, tmp_path, quiet), inputs, "two_tower", TRAINED[arm])
    assert len(trained.facts["history"]) == 2


@pytest.mark.parametrize("arm", ["full", "sample", "cadc_frozen", "cadc_trainable"])
def test_negatives_avoid_the_pairs_of_the_rows_of_an_arm(made, tmp_path, monkeypatch, arm):
    """And, with factors and a sample, likely items."""
    seen, train = [], stages.assemble.train

    def spy(network, config, data, *rest):
        seen.append(data)
        return train(network, config, data, *rest)

    monkeypatch.setattr(stages.assemble, "train", spy)
    run, inputs = made
    stages.train_stage(Run(run.config, tmp_path, quiet), inputs, "two_tower", TRAINED[arm])
    table = open_table(inputs.prepared.path)
    path = inputs.prepared.path / "train" if arm == "full" else inputs.sample.path
    rows = stages.open_rows(path, table.schema)
    pairs = rows["user"].astype(np.int64) * table.schema.num_items + rows["item"]
    (data,) = seen
    np.testing.assert_array_equal(data.negatives.known, np.unique(pairs))
    assert (data.negatives.likely is not None) == arm.startswith("cadc")


@pytest.mark.parametrize(("arm", "stored"), [("sample", 3), ("cadc_frozen", 1)])
def test_frozen_tables_are_not_stored_with_a_model(made, arm, stored):
    run, inputs = made
    trained = stages.train_stage(run, inputs, run.config.models[0], TRAINED[arm])
    with stages.ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata((trained.path / "state").resolve()).item_metadata.tree
    assert len(saved["tables"]) == stored


def test_a_trained_model_says_its_arm_and_network(made):
    run, inputs = made
    trained = stages.train_stage(run, inputs, "two_tower", TRAINED["sample"])
    assert (trained.facts["arm"], trained.facts["model"]) == ("sample", "two_tower")


def test_random_arms_depend_on_the_width_of_the_factors_alone(made, tmp_path):
    """Other factors of the same width: the frozen arm is trained anew, the random one is not."""
    run, inputs = made
    stages.train_stage(run, inputs, "two_tower", TRAINED["sample"])
    stages.train_stage(run, inputs, "two_tower", TRAINED["cadc_frozen"])
    config = run.config.copy_and_resolve_references()
    config.als.iterations = 3
    run = Run(config, run.workdir, quiet)
    other = Inputs(inputs.prepared, factorize_stage(run, inputs.prepared), inputs.sample)
    assert stages.train_stage(run, other, "two_tower", TRAINED["sample"]).reused
    assert not stages.train_stage(run, other, "two_tower", TRAINED["cadc_frozen"]).reused


def test_a_rate_that_keeps_no_row_is_refused(made):
    run, inputs = made
    config = run.config.copy_and_resolve_references()
    config.rate = 1e-9
    with pytest.raises(experiment.ConfigError, match="rate=1e-09 keeps no row: raise it"):
        stages.sample_stage(Run(config, run.workdir, quiet), inputs.prepared)


def test_the_sample_holds_the_kept_rows_of_the_prepared_table(made):
    _, inputs = made
    train = open_table(inputs.prepared.path).splits["train"]
    kept = stages.open_rows(inputs.sample.path, open_table(inputs.prepared.path).schema)
    for name, column in train.items():
        np.testing.assert_array_equal(kept[name], column[kept["row"]])

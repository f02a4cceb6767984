"""The search of a network's settings in a study."""

import gzip

import numpy as np
import pytest

from cadc_jax.errors import TrainingError
from cadc_jax.run import bundled_configs
from cadc_jax.run.arms import TRAINED
from cadc_jax.study import adapter, compute, tuning
from cadc_jax.study.cells import Cell
from cadc_jax.study.settings import Study
from cadc_jax.study.tuning import Knob
from tests.study.conftest import study_of

FROZEN = Cell("epinions", "cadc_frozen", "two_tower", "uniform", 0.25)


def names(config, arm, model="two_tower", num_items=100):
    return [
        knob.axis.name.split(":")[0]
        for knob in tuning.knobs(config, TRAINED[arm], model, num_items)
    ]


def test_a_knob_with_choices_sets_all_their_fields_and_its_name_tells_what_they_are():
    knob = Knob.of("loss", {"train.loss": "bce", "train.negatives": 4}, {"train.loss": "in_batch"})
    assert knob.axis.name == "loss: 0=bce 1=in_batch" and knob.axis.grid == (0.0, 1.0)
    assert knob.fields(0.0) == {"train.loss": "bce", "train.negatives": 4}


def test_the_first_trial_is_the_configured_one():
    config = bundled_configs.config("movielens_100k")
    config.two_tower.gate, config.train.learning_rate = 32, 0.003
    searched = tuning.knobs(config, TRAINED["cadc_frozen"], "two_tower", 100)
    first, *others = tuning.first_trials(config, searched, 10)
    fields = tuning.changed(searched, first)
    assert fields["two_tower.gate"] == 32 and fields["train.learning_rate"] == 0.003
    assert len(others) == 5 and first not in others


def test_a_configuration_with_none_of_the_choices_starts_at_the_first_one():
    config = bundled_configs.config("movielens_100k")
    config.two_tower.gate = 7
    searched = [Knob.among("two_tower.gate", 0, 32)]
    assert tuning.first_trials(config, searched, 2) == [(0.0,)]


def test_frozen_arms_choose_the_rows_of_their_factors_and_random_ones_a_width():
    config = bundled_configs.config("movielens_100k")
    assert "factor_rows" in names(config, "cadc_frozen")
    assert "als.factors" in names(config, "full") and "als.factors" in names(config, "sample")
    for arm in ("full", "sample", "cadc_trainable"):
        assert "factor_rows" not in names(config, arm)
    assert "als.factors" not in names(config, "cadc_trainable")


def test_arms_on_logistic_factors_try_more_penalty_than_suits_the_factors_alone():
    config = bundled_configs.config("movielens_100k_ctr")
    config.sgd.regularization = 0.05
    for arm in ("cadc_frozen", "cadc_trainable"):
        first, *_ = tuning.knobs(config, TRAINED[arm], "two_tower", 100)
        assert first.axis.name == "sgd.regularization" and first.place(config) == 0.05
        assert first.axis.draws[0] == 0.05 < first.axis.moved(0.05, 1)
    assert "sgd.regularization" not in names(config, "full")


def test_plain_sgd_has_rates_of_its_own():
    config = bundled_configs.config("movielens_100k")
    ranges = []
    for optimizer in ("adam", "sgd"):
        config.train.table_optimizer = optimizer
        found = tuning.knobs(config, TRAINED["full"], "two_tower", 100)
        ranges += [x.axis.draws for x in found if x.axis.name == "train.table_learning_rate"]
    assert ranges[0][1] < ranges[1][0]


def test_losses_are_searched_for_rankings_and_over_all_items_if_these_are_few():
    ranking, clicks = map(bundled_configs.config, ("movielens_100k", "movielens_100k_ctr"))
    assert "train.loss" in names(ranking, "full") and "train.loss" not in names(clicks, "full")
    few = tuning.knobs(ranking, TRAINED["full"], "two_tower", 100)
    many = tuning.knobs(ranking, TRAINED["full"], "two_tower", 100_000)
    assert any("all_items" in knob.axis.name for knob in few)
    assert not any("all_items" in knob.axis.name for knob in many)


@pytest.mark.parametrize("model", ["two_tower", "dlrm", "dcn"])
def test_every_choice_is_a_valid_configuration(model):
    config = bundled_configs.config("movielens_100k_ctr")
    for knob in tuning.knobs(config, TRAINED["cadc_frozen"], model, 100):
        for value in knob.axis.grid:
            config.update_from_flattened_dict(knob.fields(value))


class Small(Study):
    """A study of Epinions, made small."""

    def config(self, cell):
        config = super().config(cell)
        config.data.path = str(self.out / "raw")
        config.data.num_negatives = 20
        config.als.update(factors=4, iterations=2)
        config.train.update(batch_rows=64, max_evaluations=2)
        return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(study of four trials, the row of a frozen cell)."""
    out = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, [40, 60], (900, 2)), axis=0)
    (out / "raw").mkdir()
    lines = "".join(f"{user},{item}\n" for user, item in rng.permutation(pairs))
    text = f"user_id,item_id\n{lines}".encode()
    (out / "raw" / "interactions.csv.gz").write_bytes(gzip.compress(text))
    study = study_of(out, "epinions", kind=Small, trials=4)
    return study, compute.run_cell(study, FROZEN, lambda line: None)


@pytest.mark.slow
def test_each_trial_is_logged_and_what_it_trained_is_deleted(small):
    study, row = small
    (log,) = (study.out / "trials").glob("epinions-cadc_frozen-two_tower-0.25-*.csv")
    settings = {line.rsplit(",", 3)[0] for line in log.read_text().splitlines()[1:]}
    assert len(settings) == 4
    work = study.out / "work" / "epinions"
    assert len([x for x in (work / "train").iterdir() if x.is_dir()]) == 1  # the reported one
    assert "train.learning_rate" in row["chosen"] and "als.regularization" in row["chosen"]


@pytest.mark.slow
def test_other_seeds_take_what_was_found_without_a_trial(small, monkeypatch):
    study, row = small

    def no_trial(*arguments):
        raise AssertionError("a trial")

    monkeypatch.setattr(tuning, "_validation", no_trial)
    again = compute.run_cell(study, Cell(**vars(FROZEN) | {"seed": 1}), lambda line: None)
    assert again["chosen"] == row["chosen"] and again["evaluation"] != row["evaluation"]


@pytest.mark.slow
def test_trials_have_a_seed_of_their_own_and_are_not_tested(small, monkeypatch):
    study, _ = small
    seeds = []

    def train(run, inputs, model, arm):
        seeds.append(run.config.seed)
        raise TrainingError("diverged")

    def no_test(*arguments):
        raise AssertionError("the test split was read")

    monkeypatch.setattr(adapter, "train", train)
    monkeypatch.setattr(adapter, "train_and_test", no_test)
    trainable = Cell(**vars(FROZEN) | {"arm": "cadc_trainable"})
    with pytest.raises(TrainingError, match="none of 4 trials of epinions-cadc_trainable"):
        compute.run_cell(study, trainable, lambda line: None)
    assert set(seeds) == {tuning.SEED}

"""Numbers in place of 'auto': found on the validation split, written down, and used everywhere."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from cadc_jax import configuration, experiment
from cadc_jax.data.table import open_table
from cadc_jax.errors import ArtifactError, ConfigError, DataError
from cadc_jax.evaluation import scorers
from cadc_jax.run import compressed, factors, stages, tune, tune_text, updates, validation
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import UNSAMPLED, factor_tables
from cadc_jax.runtime.interrupts import Stop, Stopped
from cadc_jax.serving import folder_info, trained
from tests.small_runs import click_config, quiet, ranking_config


def auto_config(folder, **changed):
    """The small ranking task without numbers, factorised as precisely as the search does."""
    config = ranking_config(folder)
    config.als.update(regularization="auto", alpha="auto")
    config.arms, config.factor_bits = ("cadc_frozen",), 32
    config.update(changed)
    return config


def prepared_run(config, workdir, say=quiet, stop=None):
    run = Run(config, workdir, say, stop=stop or Stop())
    return run, stages.prepare_stage(run, stages.raw_data(run))


def numbers(config):
    return config.als.regularization, config.als.alpha


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run that was started without numbers, its lines and its work folder."""
    path, said = tmp_path_factory.mktemp("auto"), []
    config = auto_config(path / "raw")
    experiment.run(Run(config, path / "work", said.append))
    return config, said, path / "work"


def only(folder, stage):
    (path,) = (folder / stage).glob("[!.]*")
    return path


def lines_of(file):
    """The results in a file of trials."""
    return list(csv.DictReader(file.read_text().splitlines()))


def test_the_factors_are_those_of_the_best_trial(made):
    config, _, work = made
    run, prepared = prepared_run(config, work)
    found = tune.resolved(run, prepared)
    facts = found.tuned["als"]
    chosen = facts["chosen"]
    assert numbers(found.config) == (chosen["regularization"], chosen["alpha"])
    table = open_table(prepared.path)
    metric, quality = validation.of_table(run, table)
    user, item = factor_tables(only(work, "factorize"))
    score = quality(scorers.factors(user, item, calibrated=False))
    assert (facts["metric"], facts["validation"]) == (metric, pytest.approx(score))
    assert facts["popularity"] == pytest.approx(quality(scorers.popularity(table)))
    lines = lines_of(only(work, "tune") / tune.TRIALS_FILE)
    last = [float(x["score"]) for x in lines if int(x["resource"]) == config.als.iterations]
    assert max(last) == facts["validation"]
    assert len({(x["regularization"], x["alpha"]) for x in lines}) == facts["trials"] == 20


def test_what_was_searched_is_said_and_reported(made):
    _, said, work = made
    facts = json.loads((only(work, "tune") / "manifest.json").read_text())["facts"]
    line = tune_text.describe("als", facts)
    assert line.startswith("als.regularization = ") and "the best of 20 settings by" in line
    assert sum(line in x for x in said) == 2  # when it was found, and in the report
    results = json.loads((work / "results.json").read_text())
    assert results["tuned"]["als"]["chosen"] == facts["chosen"]
    assert results["config"]["als"]["alpha"] == facts["chosen"]["alpha"]
    seconds = {row["arm"]: row["seconds"].get("tune") for row in results["rows"]}
    assert seconds["popularity"] is None and seconds["mf_alone"] > 0 < seconds["cadc_frozen"]
    assert "DAMAGED" not in folder_info.explain(work)


def test_a_second_run_searches_and_trains_nothing(made):
    config, _, work = made
    said = []
    experiment.run(Run(config, work, said.append))
    assert all("reused" in line for line in said if line.startswith("["))


def test_numbers_that_are_given_are_not_searched(tmp_path):
    config = auto_config(tmp_path / "raw")
    config.als.alpha = 3
    run, prepared = prepared_run(config, tmp_path / "work")
    found = tune.resolved(run, prepared)
    assert found.config.als.alpha == 3 and set(found.tuned["als"]["chosen"]) == {"regularization"}
    config.als.regularization = 1
    run = Run(config, tmp_path / "work", quiet)
    assert tune.resolved(run, prepared) is run


def test_a_trained_model_is_found_by_the_configuration_without_numbers(made):
    config, _, work = made
    assert trained.open_trained(work, config=config).arm.name == "cadc_frozen"
    other = config.copy_and_resolve_references()
    other.als.factors = 5
    with pytest.raises(ArtifactError, match="nothing trained with these settings"):
        trained.open_trained(work, config=other)


def test_a_compressed_data_set_has_the_numbers(made, tmp_path):
    config, _, work = made
    experiment.compress(Run(config, work, quiet), tmp_path / "small")
    given = compressed.open_compressed(tmp_path / "small")
    facts = json.loads((only(work, "tune") / "manifest.json").read_text())["facts"]
    assert numbers(given.config) == (facts["chosen"]["regularization"], facts["chosen"]["alpha"])
    experiment.train_from(Run(given.config, tmp_path / "work", quiet), given)
    assert not (tmp_path / "work" / "tune").exists()


def test_a_compressed_data_set_without_the_numbers_is_refused(made, tmp_path):
    config, _, work = made
    run, prepared = prepared_run(config, work)
    inputs = compressed.make_inputs(run, prepared)
    compressed.write_compressed(tmp_path / "small", config, inputs, compressed.RawSize(1, 1))
    with pytest.raises(ArtifactError, match="it has no number for what is 'auto'"):
        compressed.open_compressed(tmp_path / "small")


@pytest.mark.parametrize("named", [True, False], ids=["with --config", "without"])
def test_an_update_keeps_the_numbers(made, tmp_path, named):
    config, _, work = made
    (tmp_path / "new.csv").write_text("customer,product\nzoe,3\nzoe,4\nann03,5\n")
    before = updates.open_before(work, config if named else None)
    facts = json.loads((only(work, "tune") / "manifest.json").read_text())["facts"]
    chosen = facts["chosen"]["regularization"], facts["chosen"]["alpha"]
    assert numbers(before.config) == chosen
    out = tmp_path / "out"
    experiment.update(Run(before.config, out, quiet), before, tmp_path / "new.csv")
    said = []
    experiment.run(Run(config, out, said.append), "sample")  # goes on from the update
    assert not (out / "tune").exists()
    assert sum("updated" in line for line in said) == 2
    settings = json.loads((only(out, "factorize") / "manifest.json").read_text())["settings"]
    assert (settings["config"]["regularization"], settings["config"]["alpha"]) == chosen


class After(Stop):
    """Asks the run to end after so many questions."""

    def __init__(self, questions):
        super().__init__()
        self.left = questions

    def __call__(self):
        self.left -= 1
        return self.left == 0


def test_a_search_that_is_stopped_resumes_and_finds_the_same(made, tmp_path):
    _, _, work = made
    config = auto_config(tmp_path / "raw")
    run, prepared = prepared_run(config, tmp_path / "work", stop=After(8))
    with pytest.raises(Stopped, match="7 results are saved"):
        tune.resolved(run, prepared)
    (log,) = (tmp_path / "work" / "checkpoints" / "tune").rglob(tune.TRIALS_FILE)
    first = log.read_text().splitlines()
    tune.resolved(run, prepared)
    assert not log.exists()
    file = only(run.workdir, "tune") / tune.TRIALS_FILE
    assert file.read_text().splitlines()[: len(first)] == first
    found, expected = lines_of(file), lines_of(only(work, "tune") / tune.TRIALS_FILE)
    for lines in (found, expected):
        for line in lines:
            del line["seconds"]
    assert found == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"als": {"feedback": "explicit"}},
        {"data": {"split": "users", "validation": 0.2, "test": 0.2}},
        {"factor_rows": "unsampled"},
        {"factorization": "autoencoder", "autoencoder": {"factors": 5, "regularization": "auto"}},
        {
            "factorization": "autoencoder+als",
            "autoencoder": {"factors": 5, "regularization": "auto"},
        },
        {"factorization": "sgd", "sgd": {"epochs": 2, "factors": 4, "regularization": "auto"}},
        {"evaluation": {"ranking": "full"}},
    ],
    ids=["explicit", "users", "unsampled", "autoencoder", "both", "sgd", "full ranking"],
)
def test_every_factorisation_of_rankings_can_be_searched(tmp_path, changed):
    run, prepared = prepared_run(auto_config(tmp_path / "raw", **changed), tmp_path / "work")
    found = tune.resolved(run, prepared)
    searched = set(configuration.methods(run.config))
    assert set(found.tuned) == searched
    for method in searched:
        assert isinstance(found.config[method].regularization, float)
        assert configuration.automatic(found.config, method) == ()
    factorized = factors.factorize_stage(run, prepared)  # searches by itself, and finds it done
    assert factorized.fingerprint == factors.factorize_stage(found, prepared).fingerprint
    assert (factorized.path / UNSAMPLED).exists() == (run.config.factor_rows == "unsampled")


@pytest.mark.parametrize("method", ["als", "sgd"])
def test_clicks_are_searched_by_their_auc(tmp_path, method):
    config = click_config()
    config.factorization = method
    config[method].update(factors=4, regularization="auto")
    run, prepared = prepared_run(config, tmp_path)
    facts = tune.resolved(run, prepared).tuned[method]
    assert facts["metric"] == "auc" and 0 < facts["validation"] < 1


def test_clicks_that_all_have_one_label_in_validation_take_the_defaults(tmp_path):
    config, said = click_config(), []
    config.factorization = "als"
    run, prepared = prepared_run(config, tmp_path, said.append)
    file = prepared.path / "validation" / "label.npy"
    np.save(file, np.zeros_like(np.load(file)))
    found = tune.resolved(run, prepared)
    assert numbers(found.config) == (1.0, 9.0) and not found.tuned
    assert "all rows have the same label" in said[-1]
    with pytest.raises(DataError, match="no setting is better"):
        experiment.tune_factorization(dataclasses.replace(run, verify=False), 4)


def test_a_long_log_is_searched_in_a_part(tmp_path):
    run, prepared = prepared_run(auto_config(tmp_path / "raw"), tmp_path / "work")
    rows = prepared.facts["rows"]["train"]
    whole = tune.stage(run, prepared, "als", tune.AUTOMATIC)
    part = tune.stage(run, prepared, "als", tune.Plan(work=rows * run.config.als.factors // 2))
    assert whole.facts["rows"] == rows
    assert rows // 4 < part.facts["rows"] <= rows // 2


def test_a_search_that_stays_below_popularity_is_loud():
    facts = {"trials": 20, "metric": "ndcg@10", "validation": 0.01, "popularity": 0.02}
    line = tune_text.loud("als", facts)
    assert line.startswith("*** als: none of 20 settings validates better than popularity")
    assert "cadc tune --config=..." in line
    assert tune_text.loud("als", facts | {"validation": 0.03}) == ""


# The command.


def test_the_command_shows_trials_beside_popularity_and_lines_to_paste(tmp_path):
    config, said = auto_config(tmp_path / "raw"), []
    config.als.update(regularization=0.5, alpha=2.0)
    run = Run(config, tmp_path / "work", said.append)
    experiment.tune_factorization(run, 8, (4, 8))
    facts = json.loads((only(run.workdir, "tune") / "manifest.json").read_text())["facts"]
    assert set(facts["chosen"]) == {"regularization", "alpha", "frequency_exponent", "factors"}
    text = said[-1]
    assert f"as configured{facts['configured']:>10.4f}"[:13] in text
    assert f"{facts['popularity']:.4f}" in text
    file = run.workdir / "trials-als.csv"
    assert str(file) in text
    lines = lines_of(file)
    first = lines[0]
    assert (first["regularization"], first["alpha"], first["factors"]) == ("0.5", "2.0", "8.0")
    assert {int(float(x["factors"])) for x in lines} <= {4, 8}
    pasted = auto_config(tmp_path / "other")
    exec("\n".join(x for x in text.splitlines() if x.startswith("config.")), {"config": pasted})
    for name, value in facts["chosen"].items():
        assert pasted.als[name] == value
    assert facts["validation"] >= facts["configured"]


def test_the_same_command_again_shows_the_same(tmp_path):
    said = []
    for _ in range(2):
        run = Run(auto_config(tmp_path / str(len(said))), tmp_path / "work", said.append)
        run.config.data.path = str(tmp_path / "0")
        experiment.tune_factorization(run, 4)
    assert said[-1] == said[len(said) // 2 - 1]
    assert sum("tune (als): reused" in line for line in said) == 1


def test_ranks_are_numbers():
    assert tune.parse_ranks(["64", "128", "64"]) == (64, 128)
    for texts in (["64", "x"], ["0"], [""], ["-1"]):
        with pytest.raises(ConfigError, match="must be numbers such as 64,128"):
            tune.parse_ranks(texts)


def test_a_search_is_its_own_whatever_the_test_split_holds(tmp_path):
    """The same table with other test rows has the same search."""
    run, prepared = prepared_run(auto_config(tmp_path / "raw"), tmp_path / "work")
    before = tune.stage(run, prepared, "als", tune.AUTOMATIC).facts
    file = prepared.path / "test" / "item.npy"
    np.save(file, np.roll(np.load(file), 1))
    run = Run(run.config, tmp_path / "other", quiet)
    after = tune.stage(run, prepared, "als", tune.AUTOMATIC).facts
    assert {k: v for k, v in before.items() if "sec" not in k} == {
        k: v for k, v in after.items() if "sec" not in k
    }

"""The compressed data set: what it holds, and that nothing else is needed to train from it."""

import json
import shutil

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.data.table import open_table
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.run import compressed
from cadc_jax.runtime import artifacts
from tests.small_runs import click_config, quiet, ranking_config


def clicks_config():
    config = click_config()
    config.arms, config.data.synthetic_rows = ("full", "cadc_frozen"), 4000
    return config


def shop_config(folder):
    config = ranking_config(folder)
    config.arms, config.factor_rows = ("full", "cadc_frozen"), "unsampled"
    return config


@pytest.fixture(scope="module", params=["click", "ranking"])
def made(request, tmp_path_factory):
    """(configuration, folder of the run, compressed data set), with the raw data gone."""
    path = tmp_path_factory.mktemp(request.param)
    click = request.param == "click"
    config = clicks_config() if click else shop_config(path / "raw")
    run = experiment.Run(config, path / "work", quiet)
    experiment.compress(run, path / "out")
    expected = path / "whole"
    whole = config.copy_and_resolve_references()
    whole.arms = config.arms[1:]
    experiment.run(experiment.Run(whole, expected, quiet))
    shutil.rmtree(path / ("work/synthetic" if click else "raw"))
    shutil.move(path / "out", path / "elsewhere")
    return config, path, path / "elsewhere"


def test_it_holds_the_kept_rows_the_factors_and_the_held_out_rows(made):
    config, path, folder = made
    _, inputs = compressed.open_inputs(folder)
    small = open_table(inputs.prepared.path)
    (prepared,) = (path / "work" / "prepare").iterdir()
    whole = open_table(prepared)
    kept = small.splits["train"]["row"]
    assert 0 < len(kept) < 0.4 * len(whole.splits["train"]["user"])
    for name, column in whole.splits["train"].items():
        np.testing.assert_array_equal(small.splits["train"][name], column[kept])
    for split in ("validation", "test"):
        for name, column in whole.splits[split].items():
            np.testing.assert_array_equal(small.splits[split][name], column)
    assert small.schema == whole.schema
    users = np.load(folder / "factors" / "user.npy")
    assert users.shape[0] == small.schema.num_users


def test_training_from_it_gives_what_the_whole_run_gives(made, tmp_path):
    config, path, folder = made
    saved, inputs = compressed.open_inputs(folder)
    expected = config.copy_and_resolve_references()
    expected.data.path = ""  # where the raw log lies concerns nobody else
    assert saved.to_dict() == expected.to_dict()
    experiment.train_from(experiment.Run(saved, tmp_path, quiet), inputs)
    here, there = (
        json.loads((at / "results.json").read_text()) for at in (tmp_path, path / "whole")
    )
    assert [row["arm"] for row in here["rows"]] == [row["arm"] for row in there["rows"]]
    assert "full" not in [row["arm"] for row in here["rows"]]
    for ours, expected in zip(here["rows"], there["rows"], strict=True):
        assert ours["metrics"] == expected["metrics"]
        assert ours["rows_used"] == expected["rows_used"]


def test_five_lines_of_numpy_read_it(made):
    """As the README tells users of other frameworks."""
    _, _, folder = made
    train = {f.stem: np.load(f, mmap_mode="r") for f in (folder / "table/train").glob("*.npy")}
    user_factors = np.load(folder / "factors/user.npy")
    item_factors = np.load(folder / "factors/item.npy")
    ids = np.arange(min(5, len(train["user"])))
    score = (user_factors[train["user"][ids]] * item_factors[train["item"][ids]]).sum(axis=1)
    assert np.isfinite(score).all()


def test_sizes_are_told_against_the_raw_log(made):
    _, _, folder = made
    lines = compressed.sizes(artifacts.open_artifact(folder)).splitlines()
    megabytes = {line[:26].strip(): float(line[26:].split()[0]) for line in lines}
    parts = list(megabytes.values())
    assert sum(parts[:-2]) == pytest.approx(megabytes["in all"], abs=0.3)
    assert "raw log" in megabytes


def test_a_damaged_file_is_named(made, tmp_path):
    _, _, folder = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "factors" / "item.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{file}: the file is damaged"):
        compressed.open_inputs(copy)
    compressed.open_inputs(copy, verify=False)


def test_a_folder_that_is_there_is_not_overwritten(made):
    config, path, folder = made
    _, inputs = compressed.open_inputs(folder)
    with pytest.raises(ConfigError, match=f"--out={folder}: the folder exists"):
        compressed.write_compressed(folder, config, inputs, 1)


def test_what_is_no_compressed_data_set_is_refused(made, tmp_path):
    _, path, _ = made
    with pytest.raises(ArtifactError, match="no such folder"):
        compressed.open_inputs(tmp_path / "x")
    with pytest.raises(ArtifactError, match="not a whole artefact"):
        compressed.open_inputs(tmp_path)
    (prepared,) = (path / "work" / "prepare").iterdir()
    with pytest.raises(ArtifactError, match="not a compressed data set, but of stage 'prepare'"):
        compressed.open_inputs(prepared)

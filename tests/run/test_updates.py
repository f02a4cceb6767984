"""A run that is updated with new rows, and what its folder is good for."""

import shutil

import numpy as np
import pytest

from cadc_jax import experiment
from cadc_jax.data import sampling
from cadc_jax.data.table import open_table, read_columns
from cadc_jax.errors import ArtifactError, ConfigError, DataError
from cadc_jax.factorization import autoencoder
from cadc_jax.run import factors, updates
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import UNSAMPLED, open_factors
from cadc_jax.serving import folder_info
from tests.small_runs import quiet, ranking_config

NEW = "customer,product\n" + "zoe,3\nzoe,4\nzoe,61\nann03,61\nann04,61\n"


def first_run(path, **changed):
    """A run up to the sample, of a small configuration; its configuration and its folder."""
    config = ranking_config(path / "raw")
    config.autoencoder.factors = 5
    config.update(changed)
    experiment.run(Run(config, path / "work", quiet), "sample")
    (path / "new.csv").write_text(NEW)
    return config, path / "work"


def update(folder, log, out, say=quiet):
    before = updates.open_before(folder)
    experiment.update(Run(before.config, out, say), before, log)
    return out


def only(folder, stage):
    (path,) = (folder / stage).glob("[!.]*")
    return path


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """A configuration, and the folders of its run and of an update of this."""
    path = tmp_path_factory.mktemp("update")
    config, work = first_run(path)
    return config, work, update(work, path / "new.csv", path / "out")


def test_the_sample_is_that_of_all_rows_and_keeps_what_it_kept(updated):
    config, work, out = updated
    before, after = (read_columns(only(x, "sample")) for x in (work, out))
    rows = open_table(only(out, "prepare")).splits["train"]
    kept = np.flatnonzero(sampling.keep(np.arange(len(rows["user"])), config.rate, config.seed))
    np.testing.assert_array_equal(after["row"], kept)
    np.testing.assert_array_equal(after["row"][: len(before["row"])], before["row"])


def test_a_run_in_the_folder_goes_on_from_the_update(updated):
    config, _, out = updated
    said = []
    experiment.run(Run(config, out, said.append), "sample")
    assert [line.split(":")[1].split(",")[0] for line in said if line[0] == "["] == [
        *(" updated", " updated"),
        " reused",
    ]
    assert "neither" not in folder_info.explain(out)
    assert "DAMAGED" not in folder_info.explain(out)


def test_a_finished_update_is_not_done_again(updated, tmp_path):
    _, work, out = updated
    said = []
    update(work, work.parent / "new.csv", out, said.append)
    assert all("reused" in line for line in said if line.startswith("["))


def test_an_update_of_an_update_has_all_rows(updated, tmp_path):
    config, _, out = updated
    (tmp_path / "new.csv").write_text("customer,product\nzoe,5\nbob,61\n")
    last = update(out, tmp_path / "new.csv", tmp_path / "out")
    tables = [open_table(only(x, "prepare")) for x in (out, last)]
    assert len(tables[1].splits["train"]["user"]) == len(tables[0].splits["train"]["user"]) + 2
    assert tables[1].schema.num_users == tables[0].schema.num_users + 1


def test_a_folder_is_compressed_after_an_update(updated, tmp_path):
    config, _, out = updated
    experiment.compress(Run(config, out, quiet), tmp_path / "small")
    assert "to train from" in folder_info.explain(tmp_path / "small")
    with pytest.raises(ConfigError, match="has thrown its rows away"):
        updates.open_before(tmp_path / "small")


@pytest.mark.parametrize("method", ["als", "autoencoder", "sgd"])
def test_new_users_and_items_have_vectors_and_the_others_stay_near(tmp_path, method):
    _, work = first_run(tmp_path, factorization=method, factor_bits=32)
    out = update(work, tmp_path / "new.csv", tmp_path / "out")
    before, after = (open_factors(only(x, "factorize")) for x in (work, out))
    for side in ("user", "item"):
        old, new = getattr(before, side), getattr(after, side)
        assert len(new) == len(old) + 1
        assert np.linalg.norm(new[-1]) > 0
        cosine = np.sum(old[1:] * new[1:-1]) / np.linalg.norm(old[1:]) / np.linalg.norm(new[1:-1])
        assert cosine > 0.8  # in the same basis
    if method == "autoencoder":
        assert np.linalg.norm(after.encoder[-1]) > 0


@pytest.mark.slow
def test_both_sets_of_several_factorisations_follow_with_the_same_weights(tmp_path):
    _, work = first_run(tmp_path, factorization="autoencoder+als", factor_rows="unsampled")
    before = updates.open_before(work)
    out = update(work, tmp_path / "new.csv", tmp_path / "out")
    after = updates.open_before(out)
    assert after.factors.whole.facts["weights"] == before.factors.whole.facts["weights"]
    part = after.factors.parts[0].path
    whole, unsampled = open_factors(part), open_factors(part / UNSAMPLED)
    rows = read_columns(only(out, "sample"))
    expected = autoencoder.add_rows(unsampled, rows["user"], rows["item"])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(whole.user, expected, atol=0.02 * scale)  # stored in 8 bits


def test_an_update_that_failed_goes_on_where_it_was(updated, tmp_path, monkeypatch):
    _, work, out = updated

    def fail(*args):
        raise DataError("no more")

    log, again = work.parent / "new.csv", tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(factors, "update_factors", fail)
        with pytest.raises(DataError, match="no more"):
            update(work, log, again)
    said = []
    update(work, log, again, said.append)
    assert "prepare (update): reused" in said[0]
    for stage in ("prepare", "factorize", "sample"):
        own, other = only(again, stage), only(out, stage)
        assert own.name == other.name
        for file in other.rglob("*.npy"):
            assert (own / file.relative_to(other)).read_bytes() == file.read_bytes()


def test_another_folder_is_refused(updated, tmp_path):
    _, work, _ = updated
    log = work.parent / "new.csv"
    (tmp_path / "notes.txt").write_text("mine")
    for out in (work, tmp_path):
        with pytest.raises(ConfigError, match=f"--workdir={out}: the folder exists"):
            update(work, log, out)
    other = tmp_path / "other.csv"
    other.write_text(NEW + "zoe,9\n")
    with pytest.raises(ConfigError, match="the folder exists"):
        update(work, other, updated[2])


def test_what_is_no_finished_run_is_refused(updated, tmp_path):
    _, work, _ = updated
    with pytest.raises(ArtifactError, match="no finished stage 'prepare'"):
        updates.open_before(tmp_path)
    with pytest.raises(DataError, match="no such file or folder; it has to hold the rows to add"):
        update(work, tmp_path / "none.csv", tmp_path / "out")


def test_several_runs_in_a_folder_need_a_configuration(updated, tmp_path):
    config, work, _ = updated
    shutil.copytree(work, tmp_path / "work")
    other = config.copy_and_resolve_references()
    other.als.factors = 4
    experiment.run(Run(other, tmp_path / "work", quiet), "sample")
    with pytest.raises(ConfigError, match="holds 2 artefacts of the stage 'factorize'; choose by"):
        updates.open_before(tmp_path / "work")
    before = updates.open_before(tmp_path / "work", other)
    assert open_factors(before.factors.whole.path).item.shape[1] == 4

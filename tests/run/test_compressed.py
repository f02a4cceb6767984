"""The compressed data set: what it holds, and that nothing else is needed to train from it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cadc_jax import experiment
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.run import compressed, compressed_sizes
from cadc_jax.runtime import artifacts, manifest
from tests.small_runs import click_config, quiet, ranking_config


def clicks_config():
    config = click_config()
    config.arms, config.data.synthetic_rows = ("full", "cadc_frozen"), 4000
    return config


def shop_config(folder, **sizes):
    config = ranking_config(folder, **sizes)
    config.arms, config.factor_rows = ("full", "cadc_frozen"), "unsampled"
    return config


def encoded_config(folder, **sizes):
    config = shop_config(folder, **sizes)
    config.factorization = "autoencoder"
    config.autoencoder.factors = 8
    return config


def fewer_items_config(folder):
    """Rows with values."""
    config = encoded_config(folder, users=80, items=60)
    header, *rows = (folder / "log.csv").read_text().splitlines()
    valued = [f"{row},{1 + place % 5}" for place, row in enumerate(rows)]
    (folder / "log.csv").write_text("\n".join([f"{header},times", *valued]) + "\n")
    config.data.columns.value = "times"
    return config


SIDES = ("user", "item")
CONFIGS = {
    "ranking": shop_config,
    "autoencoder": encoded_config,
    "fewer items": fewer_items_config,
}


@pytest.fixture(scope="module", params=["click", *CONFIGS])
def made(request, tmp_path_factory):
    """(configuration, folder of the run, compressed data set), with the raw data gone."""
    path = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    click = request.param == "click"
    config = clicks_config() if click else CONFIGS[request.param](path / "raw")
    run = experiment.Run(config, path / "work", quiet)
    experiment.compress(run, path / "out")
    expected = path / "whole"
    whole = config.copy_and_resolve_references()
    whole.arms = config.arms[1:]
    experiment.run(experiment.Run(whole, expected, quiet))
    shutil.rmtree(path / ("work/synthetic" if click else "raw"))
    shutil.move(path / "out", path / "elsewhere")
    return config, path, path / "elsewhere"


def unpacked(folder, workdir):
    """The artefacts that are unpacked into a work folder."""
    given = compressed.open_compressed(folder)
    return compressed.unpack(experiment.Run(given.config, workdir, quiet), given)


def only(path):
    """The artefact of a stage that has a single one."""
    (found,) = path.iterdir()
    return found


def test_it_unpacks_to_what_it_was_made_of(made, tmp_path):
    _, path, folder = made
    inputs = unpacked(folder, tmp_path)
    stages = {"prepare": inputs.prepared, "factorize": inputs.factors, "sample": inputs.sample}
    for stage, here in stages.items():
        there = only(path / "work" / stage)
        names = [x.relative_to(there) for x in sorted(there.rglob("*")) if x.is_file()]
        not_packed = ("manifest.json", "row.npy")
        gone = {x for x in names if x.parts[0] == "train" or x.name in not_packed}
        encoders = {x for x in names if x.name.startswith("encoder")}
        if (folder / "factors" / "encoder.parquet").exists():
            encoders = {x for x in encoders if len(x.parts) > 1}
        gone |= encoders
        left = [x.relative_to(here.path) for x in sorted(here.path.rglob("*")) if x.is_file()]
        assert [x for x in left if x.name != "manifest.json"] == [x for x in names if x not in gone]
        for name in set(names) - gone:
            assert (here.path / name).read_bytes() == (there / name).read_bytes(), name
    kept = np.load(only(path / "work" / "sample") / "row.npy")
    assert 0 < len(kept) < 0.4 * inputs.prepared.facts["rows"]["train"]


def test_an_encoder_is_stored_in_place_of_users_if_it_is_smaller(made):
    config, path, folder = made
    encoded = config.factorization == "autoencoder"
    assert len(list(path.glob("work/factorize/*/**/encoder.npy"))) == 2 * encoded
    users, items = (len(np.load(only(path / "work/factorize") / f"{x}.npy")) for x in SIDES)
    smaller = encoded and items < users
    names = {x.name for x in (folder / "factors").iterdir()}
    sides = {"encoder.parquet"} if smaller else {"user.parquet"}
    assert names - {"global_bias.parquet"} == (
        sides | {"item.parquet"} | ({"unsampled"} if config.factor_rows == "unsampled" else set())
    )
    assert "encoder" not in " ".join(x.name for x in (folder / "factors/unsampled").glob("*"))


def test_one_set_of_factors_of_an_autoencoder_is_trained_from(tmp_path):
    config = encoded_config(tmp_path / "raw")
    config.arms, config.factor_rows = ("cadc_frozen",), "all"
    experiment.compress(experiment.Run(config, tmp_path / "work", quiet), tmp_path / "out")
    given = compressed.open_compressed(tmp_path / "out")
    experiment.train_from(experiment.Run(given.config, tmp_path / "elsewhere", quiet), given)
    rows = json.loads((tmp_path / "elsewhere" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["popularity", "mf_alone", "cadc_frozen"]


def test_unpacking_again_finds_what_is_there(made, tmp_path):
    _, _, folder = made
    first, second = unpacked(folder, tmp_path), unpacked(folder, tmp_path)
    assert not first.sample.reused and second.sample.reused
    assert first.factors.path == second.factors.path
    before = compressed.open_compressed(folder).made.facts["seconds"]["prepared"]
    assert second.prepared.seconds >= before


def test_training_from_it_gives_what_the_whole_run_gives(made, tmp_path):
    config, path, folder = made
    given = compressed.open_compressed(folder)
    expected = config.copy_and_resolve_references()
    expected.data.path = ""  # where the raw log lies concerns nobody else
    assert given.config.to_dict() == expected.to_dict()
    experiment.train_from(experiment.Run(given.config, tmp_path, quiet), given)
    here, there = (
        json.loads((at / "results.json").read_text()) for at in (tmp_path, path / "whole")
    )
    crossed = config.factor_rows == "unsampled"
    left_out = ("full", "mf_alone") if crossed else ("full",)  # which take all rows
    kept = [row for row in there["rows"] if row["arm"] not in left_out]
    assert ("mf_refreshed" in [row["arm"] for row in kept]) == crossed
    assert [row["arm"] for row in here["rows"]] == [row["arm"] for row in kept]
    for ours, expected in zip(here["rows"], kept, strict=True):
        assert ours["metrics"] == expected["metrics"]
        assert ours["rows_used"] == expected["rows_used"]


def test_any_parquet_reader_reads_its_rows(made, tmp_path):
    """As the README tells users of other frameworks."""
    config, _, folder = made
    rows = parquet.read_table(folder / "rows.parquet")
    kept = unpacked(folder, tmp_path).sample.path
    assert rows["user"].to_numpy().tolist() == np.load(kept / "user.npy").tolist()
    if config.data.task == "click":
        dense = np.load(kept / "dense.npy")
        assert rows["dense.I2"].to_numpy().tolist() == dense[:, 1].tolist()


def test_the_parts_are_its_files(made):
    _, _, folder = made
    opened = artifacts.open_artifact(folder)
    parts = compressed_sizes.sizes(opened)
    assert min(parts[name] for name in ("kept rows", "factors", "held-out rows")) > 0
    assert sum(parts.values()) == artifacts.size_of(folder)
    lines = compressed_sizes.describe(opened).splitlines()
    megabytes = {line[:30].strip(): float(line[30:].split()[0]) for line in lines[1:]}
    assert megabytes["in all"] == pytest.approx(artifacts.size_of(folder) / 1e6, abs=0.001)
    raw = opened.facts["raw"]
    assert megabytes["raw log, unpacked"] == pytest.approx(raw["unpacked"] / 1e6, abs=0.001)


def test_a_damaged_file_is_named(made, tmp_path):
    _, _, folder = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "factors" / "item.parquet"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{file}: the file is damaged"):
        compressed.open_compressed(copy)
    given = compressed.open_compressed(copy, verify=False)
    with pytest.raises(ArtifactError, match=f"{file}: not a Parquet file .* compress again"):
        compressed.check(given)


def test_nothing_is_left_of_what_was_refused(made, tmp_path):
    _, _, folder = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    rows = parquet.read_table(copy / "rows.parquet")
    beyond = pa.array(np.full(len(rows), 1 << 20, np.int32))
    rows = rows.set_column(rows.column_names.index("user"), "user", beyond)
    parquet.write_table(rows, copy / "rows.parquet", store_schema=False)
    (copy / manifest.NAME).unlink()
    made = artifacts.open_artifact(folder)
    manifest.write(copy, made.settings, made.facts, made.seconds)
    with pytest.raises(ArtifactError) as caught:
        unpacked(copy, tmp_path / "work")
    fault = f"{copy}: user.npy: row 0: the value {1 << 20} is out of range; get a whole copy, or "
    assert str(caught.value).startswith(fault)
    assert not list((tmp_path / "work" / "sample").iterdir())


def test_a_folder_that_is_there_is_not_overwritten(made, tmp_path):
    config, path, folder = made
    inputs = unpacked(folder, tmp_path)
    with pytest.raises(ConfigError, match=f"--out={folder}: the folder exists"):
        compressed.write_compressed(folder, config, inputs, compressed.RawSize(1, 1))


def test_what_is_no_compressed_data_set_is_refused(made, tmp_path):
    _, path, _ = made
    with pytest.raises(ArtifactError, match="no such folder"):
        compressed.open_compressed(tmp_path / "x")
    with pytest.raises(ArtifactError, match="not a whole artefact"):
        compressed.open_compressed(tmp_path)
    (prepared,) = (path / "work" / "prepare").iterdir()
    with pytest.raises(ArtifactError, match="not a compressed data set, but of stage 'prepare'"):
        compressed.open_compressed(prepared)

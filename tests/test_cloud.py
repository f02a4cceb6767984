"""Work folders, logs and compressed data sets in buckets, against an emulator of Google's store."""

import gzip
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cadc_jax import experiment
from cadc_jax.data import raw
from cadc_jax.data.readers import registry, synthetic
from cadc_jax.errors import StorageError
from cadc_jax.run import compressed
from cadc_jax.runtime import artifacts, mirror
from cadc_jax.runtime.manifest import NAME as MANIFEST
from cadc_jax.runtime.storage import Remote
from tests import ranking_log
from tests.program import ROOT, assert_one_line, cadc, free_port
from tests.small_runs import click_config, quiet
from tests.stores import Proxy, emulator

pytestmark = pytest.mark.slow
BUCKET, OTHER = Remote("gs", "bucket"), Remote("gs", "other")
FLAKY = 0.05


@pytest.fixture(scope="module")
def proxy():
    pytest.importorskip("gcsfs")
    with emulator("bucket", "other") as address, Proxy(address) as proxy:
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.url
        yield proxy
        del os.environ["STORAGE_EMULATOR_HOST"]
        fsspec.filesystem("gs", use_listings_cache=False).clear_instance_cache()


@pytest.fixture(autouse=True)
def healthy(proxy, monkeypatch, tmp_path):
    proxy.failing, proxy.failed, proxy.requests = 0.0, 0, []
    proxy.refuse = lambda method, path: None
    monkeypatch.setenv("CADC_CACHE_DIR", str(tmp_path / "cache"))


def small():
    config = click_config()
    config.data.synthetic_rows = 2000
    return config


def run(place, scratch, config=None, last="report"):
    """Runs the job in a work folder on a URL; returns what it said."""
    said = []
    this = experiment.Run(config or small(), scratch, say=said.append, remote=place)
    experiment.run(this, last)
    return said


def test_the_whole_job_on_a_server_that_fails_one_request_in_twenty(proxy, tmp_path):
    proxy.failing = FLAKY
    config = small()
    config.checkpoints.seconds = 0.0
    place = BUCKET / "whole"
    said = run(place, tmp_path / "a", config)
    assert proxy.failed >= 3, f"of {len(proxy.requests)} requests"
    proxy.failing = 0.0
    assert f"{place}/report.md, report.png and results.json" in said[-1]
    files = place.files()
    assert {"report.md", "report.png", "results.json"} <= files.keys()
    assert not [name for name in files if name.startswith(("checkpoints/", ".lock"))]
    results = json.loads((place / "results.json").read_bytes())
    again = run(place, tmp_path / "b", config)  # another machine: nothing is here
    assert not [line for line in again if ": done in" in line]
    assert json.loads((place / "results.json").read_bytes()) == results
    here = mirror.local_copy(place)
    for file in here.glob(f"*/*/{MANIFEST}"):
        artifacts.open_artifact(file.parent, verify=True)


def logs(folder):
    """The same rows as a plain, a gzip and a Zstandard file; returns the plain one."""
    folder.mkdir()
    log = folder / "day_0.txt"
    synthetic.write_criteo(log, 500, seed=0)
    (folder / "day_1.txt.gz").write_bytes(gzip.compress(log.read_bytes()))
    packed = pa.compress(log.read_bytes(), "zstd", asbytes=True)
    (folder / "day_2.txt.zst").write_bytes(packed)
    return log


def read(path, config):
    data = config.data.to_dict()
    return raw.collect(registry.open_raw_data(data["source"], path, data))


def test_logs_are_read_from_a_bucket_in_every_packing(proxy, tmp_path):
    proxy.failing = FLAKY
    config, place = small(), BUCKET / "logs"
    logs(tmp_path / "logs")
    mirror.upload(tmp_path / "logs", place)
    config.data.block_bytes = 1 << 12  # several blocks and pieces
    here, there = read(tmp_path / "logs", config), read(place, config)
    assert there.report.rows == here.report.rows == 1500
    for name in here.categorical:
        np.testing.assert_array_equal(there.categorical[name], here.categorical[name])
    np.testing.assert_array_equal(there.label, here.label)
    identity = artifacts.file_identity(registry.raw_files("criteo", place, config.data.to_dict()))
    assert [x[1] for x in identity] == [
        x.stat().st_size for x in sorted((tmp_path / "logs").iterdir())
    ]
    assert all(int(version) > 0 for _, _, version in identity)  # generations


def test_a_parquet_folder_is_read_from_a_bucket(tmp_path):
    config, place = small(), BUCKET / "shop"
    (tmp_path / "rows").mkdir()
    for number in range(2):
        table = pa.table({"u": [f"a{number}", "b"], "i": [1, 2 + number]})
        parquet.write_table(table, tmp_path / "rows" / f"part-{number}.parquet")
    mirror.upload(tmp_path, place)
    config.data.update(source="tabular", train_file="rows")
    config.data.columns.update(user="u", item="i")
    found = read(place, config)
    assert found.item.tolist() == [1, 2, 1, 3]
    assert found.user.to_pylist() == ["a0", "b", "a1", "b"]


def test_a_log_that_is_missing_is_one_line():
    with pytest.raises(Exception, match="gs://bucket/none: no such file or folder"):
        read(BUCKET / "none", small())


def program(place, *more, **kwargs):
    """Starts the small job as a program."""
    settings = {
        "data.synthetic_rows": 2000,
        "data.folder": "none",
        "rate": 0.25,
        "sgd.epochs": 1,
        "sgd.factors": 6,
        "dlrm.embedding_dim": 8,
        "dlrm.bottom": (8,),
        "dlrm.top": (8,),
        "models": ("dlrm",),
        "arms": ("cadc_frozen",),
        "train.batch_rows": 64,
        "train.steps_per_call": 4,
        "train.max_evaluations": 4,
        "checkpoints.seconds": 0,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "cadc_jax.main", "--config=configs/criteo.py", *flags]
    command += [f"--workdir={place}", *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_and_resumed_on_another_machine(tmp_path):
    place = BUCKET / "killed"

    def copied():
        names = place.files() if place.exists() else {}
        return any(x.startswith("checkpoints/train/") and x.endswith(MANIFEST) for x in names)

    first = program(place)
    wait_for(copied, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shutil.rmtree(pathlib.Path(os.environ["CADC_CACHE_DIR"]))
    second = program(place)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert "Resuming from step" in said
    assert said.count("reused, made in") >= 4
    assert not [name for name in place.files() if name.startswith("checkpoints/")]


APART = {
    "arms": ("full",),
    "data.block_bytes": 1 << 10,
    "als.alpha": 16.0,
    "checkpoints.seconds": 0,
    "train.batch_rows": 128,
    "train.steps_per_call": 40,
}


def on_two_machines(config, place, scratch):
    """Starts a run of two processes, each with a local folder of its own, and with split tables."""
    command = [sys.executable, "-m", "cadc_jax.main", f"--config={config}", f"--workdir={place}"]
    command += ["--config.devices.table_bytes=13000", "--num_processes=2"]
    command += [f"--coordinator=localhost:{free_port()}"]
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    return [
        subprocess.Popen(
            [*command, f"--process_id={k}", f"--scratch={scratch / str(k)}"],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(2)
    ]


def artifacts_in(place, stage):
    return [json.loads(file.read_bytes()) for file in place.glob(f"{stage}/*/{MANIFEST}")]


def test_two_machines_that_share_no_disk_resume_with_empty_disks(tmp_path):
    (tmp_path / "log").mkdir()
    place, config = BUCKET / "apart", ranking_log.write(tmp_path / "log", APART)

    def in_training():
        names = place.files() if place.exists() else {}
        return any(x.startswith("checkpoints/train/") and x.endswith(MANIFEST) for x in names)

    both = on_two_machines(config, place, tmp_path / "before")
    wait_for(in_training, both[0])
    for process in both:
        process.kill()
        process.communicate()
    both = on_two_machines(config, place, tmp_path / "after")
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Resuming from step" in said[0] and said[0].count("reused, made in") >= 3
    assert not [x for x in place.files() if x.startswith(("checkpoints/", "prepare/.", "train/."))]

    config = runpy.run_path(str(config))["get_config"]()
    again = run(place, tmp_path / "third", config)  # one machine, with one process
    assert not [line for line in again if ": done in" in line]
    experiment.run(experiment.Run(config, tmp_path / "alone", say=quiet), "factorize")
    (table,), (same,) = (artifacts_in(x, "prepare") for x in (tmp_path / "alone", place))
    assert table["files"] == same["files"]
    (alone,), (made,) = (artifacts_in(x, "factorize") for x in (tmp_path / "alone", place))
    np.testing.assert_allclose(made["facts"]["losses"], alone["facts"]["losses"], rtol=2e-3)


def test_compressed_in_one_bucket_and_trained_from_in_another(tmp_path):
    out = OTHER / "small"
    this = experiment.Run(small(), tmp_path / "a", say=quiet, remote=BUCKET / "source")
    experiment.compress(this, out)
    given = compressed.open_compressed(mirror.local_copy(out))
    trained = OTHER / "trained"
    this = experiment.Run(given.config, tmp_path / "b", say=quiet, remote=trained)
    experiment.train_from(this, given)
    arms = [row["arm"] for row in json.loads((trained / "results.json").read_bytes())["rows"]]
    assert "cadc_frozen" in arms
    done = cadc("info", out)
    assert done.returncode == 0 and "a compressed data set: train from it" in done.stdout


def test_no_bucket_and_no_permission_are_one_line(proxy, tmp_path):
    with pytest.raises(StorageError, match="gs://none/run/.*: no such bucket"):
        run(Remote("gs", "none/run"), tmp_path / "a", last="prepare")
    proxy.refuse = lambda method, path: (403, "no storage.objects.create access")
    with pytest.raises(StorageError, match="no permission .*gcloud auth"):
        run(BUCKET / "denied", tmp_path / "b", last="prepare")


@pytest.mark.parametrize("code, text", [(507, "full"), (403, "The project exceeded its quota")])
def test_a_full_quota_is_one_line_and_what_is_finished_is_kept(proxy, tmp_path, code, text):
    place = BUCKET / f"full-{code}"

    def refuse(method, path):
        return (code, text) if method != "GET" and "lock" not in path and locked() else None

    def locked():  # the folder is held, and stages follow
        return (tmp_path / "a" / "prepare").exists()

    proxy.refuse = refuse
    with pytest.raises(StorageError, match="the store has no room .*run the same command again"):
        run(place, tmp_path / "a", last="prepare")
    (made,) = (tmp_path / "a" / "prepare").glob("[!.]*")
    artifacts.open_artifact(made, verify=True)
    proxy.refuse = lambda method, path: None
    said = run(place, tmp_path / "a", last="prepare")
    assert "reused" in "".join(said) and (place / "prepare" / made.name / MANIFEST).exists()


def test_the_program_names_a_url_typed_wrong_in_one_line(tmp_path):
    done = cadc("--config=configs/criteo.py", "--workdir=gs:/bucket/run", cwd=ROOT)
    assert_one_line(done, "--workdir=gs:/bucket/run: not a URL; write gs://bucket/folder")
    assert not (ROOT / "gs:").exists()

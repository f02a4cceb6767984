"""The same program in one process and in several, over Gloo on this machine.

Sums are added up in an order that depends on the number of devices. Factors, parameters and losses
therefore agree only to about 1e-4, and items with almost equal scores may swap ranks.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.runtime import distributed
from tests import ranking_log
from tests.program import free_port

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = ROOT / "launch/local.sh"
ENVIRONMENT = {
    **{name: x for name, x in os.environ.items() if not name.startswith("JAX_")},
    "CADC_DATA_DIR": "/nowhere",
    "PYTHON": sys.executable,
    # One thread a process, as there are not more cores than processes. No optimisation, as
    # compiling takes longer than running.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
    " --xla_backend_optimization_level=0",
}
CRITEO = (
    f"--config={ROOT / 'configs/criteo.py'}",
    "--config.data.synthetic_rows=6000",
    "--config.sgd.epochs=2",
    "--config.checkpoints.seconds=0",  # after each block of the factorisation
    "--config.train.batch_rows=256",
    "--config.train.max_evaluations=2",
    "--config.dlrm.bottom=(16,)",
    "--config.dlrm.top=(8,)",
)
TWO_ARMS = "--config.arms=('full', 'cadc_frozen')"
RANKING = {
    "arms": ("sample", "cadc_frozen"),
    "train.batch_rows": 64,
    "train.steps_per_call": 7,
}


def start(command, **settings):
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def cadc(*arguments):
    return start([sys.executable, "-m", "cadc_jax.main", *arguments])


def processes_of(arguments, workdirs):
    """Starts the processes of one run, one for each work folder."""
    together = (f"--coordinator=localhost:{free_port()}", f"--num_processes={len(workdirs)}")
    return [
        cadc(*arguments, f"--workdir={workdir}", *together, f"--process_id={k}")
        for k, workdir in enumerate(workdirs)
    ]


def finished(process, timeout=170):
    """(exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.terminate()
    return process.returncode, out, err


def errors(text):
    return [line for line in text.splitlines() if line.startswith("cadc: error")]


@pytest.fixture(scope="module")
def ranking_config(tmp_path_factory):
    return f"--config={ranking_log.write(tmp_path_factory.mktemp('ranking'), RANKING)}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, ranking_config):
    """Work folders of finished runs with one, two or four processes."""
    split = ("--config.devices.table_bytes=13000",)
    commands = {
        "criteo-1": cadc,
        "criteo-2": lambda *arguments: start([LOCAL, 2, "--", *arguments]),
        "ranking-1": cadc,
        "ranking-4": lambda *arguments: start([LOCAL, 4, "--", *arguments, *split]),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in commands}
    for name, run in commands.items():
        config = (*CRITEO, TWO_ARMS) if name.startswith("criteo") else (ranking_config,)
        code, out, err = finished(run(*config, f"--workdir={folders[name]}"))
        assert code == 0, err
        (folders[name] / "stdout").write_text(out)
    return folders


@pytest.fixture(params=["criteo-2", "ranking-4"])
def pair(request, runs):
    """Work folders of a run with one process, and of the same run with several."""
    return runs[request.param[:-1] + "1"], runs[request.param]


def stage(workdir, name):
    """Fingerprint -> facts of the artefacts of a stage."""
    manifests = sorted((workdir / name).glob("*/manifest.json"))
    return {path.parent.name: json.loads(path.read_text())["facts"] for path in manifests}


def test_several_processes_find_the_same_factors_as_one(pair):
    (one, facts), (several, same) = (next(iter(stage(x, "factorize").items())) for x in pair)
    np.testing.assert_allclose(facts["losses"], same["losses"], rtol=1e-4)
    for file in (pair[0] / "factorize" / one).glob("*.npy"):
        found = np.load(pair[1] / "factorize" / several / file.name)
        np.testing.assert_allclose(found, np.load(file), rtol=2e-3, atol=2e-4, err_msg=file.name)


def test_every_arm_learns_what_it_learns_in_one_process(pair):
    """If part of a batch were read twice or not at all, losses would differ by some percent."""
    one, several = (stage(workdir, "train") for workdir in pair)
    assert len(one) == len(several) > 1

    def histories(facts):
        histories = [[h.get("loss", 0) for h in x["history"]] for x in facts.values()]
        return np.array(sorted(histories))

    np.testing.assert_allclose(histories(several), histories(one), rtol=2e-3)


def test_several_processes_reach_the_same_metrics_as_one(pair):
    one, several = (json.loads((workdir / "results.json").read_text())["rows"] for workdir in pair)
    assert [row["arm"] for row in one] == [row["arm"] for row in several]
    for row, same in zip(one, several, strict=True):
        assert row["rows_used"] == same["rows_used"]
        assert same["metrics"] == pytest.approx(row["metrics"], rel=0.01, abs=0.015), row["arm"]


def test_only_the_first_process_prints_and_each_stage_once(pair):
    one, several = ((workdir / "stdout").read_text() for workdir in pair)

    def stages(text):
        return [x.split(":")[0] for x in text.splitlines() if x.startswith("[")]

    assert stages(several) == stages(one)


def test_a_run_of_one_process_reuses_the_artefacts_of_several(runs):
    code, out, err = finished(cadc(*CRITEO, TWO_ARMS, f"--workdir={runs['criteo-2']}"))
    assert code == 0, err
    stages = [line for line in out.splitlines() if line.startswith("[")]
    assert all("reused" in line for line in stages)


def test_a_killed_process_ends_the_others_within_a_minute_in_one_line(tmp_path):
    endless = (
        "--config.train.max_evaluations=1000000",
        "--config.train.patience=1000000",
        "--config.arms=('full',)",
    )
    first, second = processes_of(CRITEO + endless, [tmp_path, tmp_path])
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("train/.*.tmp")):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.2)
    time.sleep(5)  # until it trains
    second.send_signal(signal.SIGKILL)
    code, _, err = finished(first, timeout=60)
    second.communicate()
    assert code != 0
    assert [line for line in err.splitlines() if "steps, " not in line] == errors(err)
    assert len(errors(err)) == 1 and "process 1 has ended" in errors(err)[0]


def test_when_one_process_is_asked_to_stop_all_save_and_a_single_process_can_resume(tmp_path):
    """Only the second process gets the signal, as when one of several spot machines is lost."""
    slow = ("--config.checkpoints.seconds=0", "--config.train.steps_per_call=1")
    arguments = (*CRITEO, *slow, "--config.arms=('full',)", "--config.train.max_evaluations=4")
    folder = tmp_path / "stopped"
    first, second = processes_of(arguments, [folder, folder])
    deadline = time.monotonic() + 100
    while not list(folder.glob("checkpoints/train/*/[1-9]*")):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        code, _, err = finished(process, timeout=60)
        assert code == 0 and "stopped by SIGTERM: step" in err
    code, out, err = finished(cadc(*arguments, f"--workdir={folder}"))
    assert code == 0 and "Resuming from step" in out, err
    code, _, err = finished(cadc(*arguments, f"--workdir={tmp_path / 'undisturbed'}"))
    assert code == 0, err
    (stopped,), (undisturbed,) = (
        stage(tmp_path / name, "train").values() for name in ("stopped", "undisturbed")
    )
    for entry, same in zip(undisturbed["history"], stopped["history"], strict=True):
        assert same == pytest.approx(entry, rel=2e-3)


def test_an_error_of_the_user_ends_all_processes_and_is_printed_once(tmp_path):
    arguments = (*CRITEO, "--config.data.path=/nowhere/train.txt")
    results = [finished(process) for process in processes_of(arguments, [tmp_path, tmp_path])]
    assert [code for code, _, _ in results] == [1, 1]
    text = "".join(out + err for _, out, err in results)
    assert text.count("\n") == 1 and "/nowhere/train.txt" in text


def test_a_work_folder_that_is_not_shared_is_reported(tmp_path):
    workdirs = [tmp_path / "a", tmp_path / "b"]
    results = [finished(process) for process in processes_of(CRITEO, workdirs)]
    assert [code for code, _, _ in results] == [1, 1]
    (line,) = errors("".join(err for _, _, err in results))
    assert "process 1 on" in line and "file system that all processes share" in line


def test_without_a_coordinator_a_process_gives_up_in_one_line():
    arguments = (*CRITEO, "--coordinator=localhost:1", "--num_processes=2", "--process_id=1")
    code, out, err = finished(cadc(*arguments, "--join_seconds=2"))
    assert code != 0 and out == ""
    assert err.count("\n") == 1 and "--join_seconds" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("host:1", None, None), "--num_processes and --process_id not given"),
        ((None, 2, 0), "--coordinator not given"),
        (("host:1", 2, 2), r"--process_id=2: must be in \[0, 2\)"),
        (("host", 2, 1), "write HOST:PORT"),
    ],
)
def test_incomplete_or_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        distributed.initialize(*arguments)


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
            distributed.initialize(f"localhost:{port}", 2, 0)


@pytest.mark.parametrize("bind", ["127.0.0.1", ":8476", "host:eight"])
def test_a_wrong_address_to_listen_on_is_refused(bind):
    with pytest.raises(ConfigError, match="--coordinator_bind=.*write HOST:PORT"):
        distributed.initialize("localhost:1", 2, 1, bind=bind)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="--coordinator_bind=192.0.2.1:8476: process 0 cannot"):
        distributed.initialize("localhost:8476", 2, 0, bind="192.0.2.1:8476")


def test_a_jax_without_its_private_store_is_refused_by_several_processes_only(monkeypatch):
    monkeypatch.delattr("jax._src.distributed.global_state")
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: False)  # by what it has instead
    assert (distributed.count(), distributed.index()) == (1, 0)
    with pytest.raises(distributed.DistributedError, match="jax .* install the version in"):
        distributed.initialize("localhost:1", 2, 1)


EXCHANGE = """
import json, socket, sys
from cadc_jax.runtime import distributed as d

port, k, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
d.initialize(f"127.0.0.1:{port}", 2, k, bind=f"127.0.0.1:{port}")
def reachable(host):
    try:
        return not socket.create_connection((host, port), 1).close()
    except OSError:
        return False

found = {
    "listens": [reachable("127.0.0.1"), reachable("127.0.0.2")],
    "count": d.count(),
    "index": d.index(),
    "is_first": d.is_first(),
    "of_first": d.of_first([k, "x"]),
    "on_first": d.on_first(lambda: k),
    "in_any": [d.in_any(k == 1), d.in_any(False)],
    "before": d.reported_by_any("stop", False),
}
d.barrier("asked")
d.reported_by_any("stop", k == 1)
d.barrier("reported")
found["after"] = d.reported_by_any("stop", k == 1)
with open(out, "w") as file:
    json.dump(found, file)
d.finish()
"""


def test_two_processes_share_values_of_the_first_and_reports_of_any(tmp_path):
    port, files = free_port(), [tmp_path / "0", tmp_path / "1"]
    commands = [[sys.executable, "-c", EXCHANGE, port, k, files[k]] for k in range(2)]
    results = [finished(process) for process in [start(command) for command in commands]]
    assert [code for code, _, _ in results] == [0, 0], results
    first, second = (json.loads(file.read_text()) for file in files)
    same = {"count": 2, "of_first": [0, "x"], "on_first": 0, "in_any": [True, False]}
    same |= {"before": False, "after": True, "listens": [True, False]}
    assert first == same | {"index": 0, "is_first": True}
    assert second == same | {"index": 1, "is_first": False}


def test_a_run_of_one_process_joins_nothing():
    distributed.initialize()
    assert (distributed.count(), distributed.index()) == (1, 0)
    assert distributed.on_first(lambda: ["unchanged"]) == ["unchanged"]
    assert distributed.in_any(True) and not distributed.in_any(False)
    assert distributed.reported_by_any("stop", True)
    assert not distributed.reported_by_any("stop", False)

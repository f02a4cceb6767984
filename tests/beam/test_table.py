"""Apache Beam prepares the same table as one machine, byte for byte."""

import dataclasses
import functools
import gzip
import json
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import pytest

beam = pytest.importorskip("apache_beam")

from cadc_jax.beam.table import BeamConfig, write_table  # noqa: E402
from cadc_jax.data import prepare  # noqa: E402
from cadc_jax.data.prepare import PrepareConfig  # noqa: E402
from cadc_jax.data.readers import criteo, synthetic, tabular  # noqa: E402
from cadc_jax.errors import ConfigError, DataError  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Beam's own warnings

BLOCK = 1 << 14  # bytes: small, for many blocks
CLICK = {"user_features": ("C7",), "item_features": ("C11", "C15"), "log_dense": True}
ORDER = PrepareConfig("click", "order", 0.2, 0.2, min_count=2, **CLICK)
DAYS = [f"day_{day}.gz" for day in range(5)]
DIRECT = BeamConfig("DirectRunner", "criteo")
PROCESSES = ("direct_running_mode=multi_processing", "direct_num_workers=2")
EVENTS = tabular.ColumnNames("user", "item", "label", dense=["x"], categorical=["c"])


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A log of 3,000 rows: plain, in days, with malformed rows, cut off; and a table of events."""
    folder = tmp_path_factory.mktemp("logs")
    synthetic.write_criteo(folder / "log", 3000, seed=1)
    lines = (folder / "log").read_bytes().splitlines(keepends=True)
    for day, name in enumerate(DAYS):
        (folder / name).write_bytes(gzip.compress(b"".join(lines[day::5])))
    bad = [b"2" + line[1:] if place % 97 == 5 else line for place, line in enumerate(lines)]
    bad[50] = b"\t".join(bad[50].split(b"\t")[:30]) + b"\n"  # lacks fields
    (folder / "malformed.gz").write_bytes(gzip.compress(b"".join(bad)))
    (folder / "truncated.gz").write_bytes((folder / DAYS[0]).read_bytes()[:-2000])
    events = ["user,item,label,x,c"]
    events += [f"u{i % 31},i{i % 17},{i * 7 % 3 % 2},{i % 5},c{i % 11}" for i in range(1000)]
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    return folder


def opener(folder, *names, folds=None):
    return functools.partial(criteo.open_logs, [folder / x for x in names], folds, BLOCK)


def of_events(folder):
    files = tabular.TableFiles(["events.csv"])
    return functools.partial(tabular.open_rows, folder, files, EVENTS, BLOCK)


def files_of(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def both(tmp_path, open_source, config, how=DIRECT):
    """Facts and files of one machine, and of Beam."""
    alone, beam = tmp_path / "alone", tmp_path / "beam"
    for folder in (alone, beam):
        folder.mkdir()
    facts = prepare.write_table(alone, open_source(), config)
    return (facts, files_of(alone)), (write_table(beam, open_source, config, how), files_of(beam))


CASES = {
    "a plain log": (["log"], None, ORDER),
    "days": (DAYS, [0, 0, 0, 1, 2], PrepareConfig("click", "given", **CLICK)),
    "days by chance, hashed": (
        DAYS,
        None,
        PrepareConfig("click", "random", 0.1, 0.1, max_vocabulary=40, **CLICK),
    ),
    "malformed rows": (["malformed.gz"], None, dataclasses.replace(ORDER, max_malformed=0.1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_table_is_that_of_one_machine(case, logs, tmp_path):
    names, folds, config = CASES[case]
    (facts, files), (beams_facts, beams_files) = both(
        tmp_path, opener(logs, *names, folds=folds), config
    )
    assert beams_facts == facts
    assert beams_files == files
    assert (facts["reader"]["malformed"] > 0) == (case == "malformed rows")


def test_two_processes_of_workers_write_the_same(logs, tmp_path):
    how = dataclasses.replace(DIRECT, options=PROCESSES, scratch=str(tmp_path / "scratch"))
    alone, beam = both(tmp_path, opener(logs, *DAYS), ORDER, how)
    assert beam == alone
    assert not list((tmp_path / "scratch").iterdir())


def test_tables_with_names_of_columns_go_the_same_way(logs, tmp_path):
    config = PrepareConfig("click", "order", 0.2, 0.2)
    alone, beam = both(tmp_path, of_events(logs), config, BeamConfig("DirectRunner", "tabular"))
    assert beam == alone


class Weighed(beam.Pipeline):
    """A pipeline that fails if any of its steps yields an element of more than MOST bytes."""

    MOST = 1 << 14
    weighing = False

    def apply(self, transform, pvalueish=None, label=None):
        outputs = super().apply(transform, pvalueish, label)
        named = label is not None  # Beam calls again without the name
        if isinstance(transform, beam.ParDo) and not (named or self.weighing):
            self.weighing = True
            several = not isinstance(outputs, beam.PCollection)
            for place, output in enumerate(outputs if several else [outputs]):
                _ = output | f"weigh {transform.label} {place}" >> beam.Map(weigh)
            self.weighing = False
        return outputs


def weigh(element):
    assert len(pickle.dumps(element)) <= Weighed.MOST, type(element)


class WeighedConfig(BeamConfig):
    def pipeline(self):
        return Weighed(super().pipeline().runner)


def test_neither_text_nor_rows_nor_counts_travel_between_workers(logs, tmp_path):
    """A runner may hold all that travels in memory. The whole log is one block here."""
    log = functools.partial(criteo.open_logs, [logs / "log"])
    assert (logs / "log").stat().st_size > 30 * Weighed.MOST
    write_table(tmp_path, log, ORDER, WeighedConfig("DirectRunner", "criteo"))
    assert files_of(tmp_path)


@pytest.mark.parametrize("names", [["truncated.gz"], ["malformed.gz"], [DAYS[0], "none.gz"]])
def test_faults_of_the_rows_are_the_same_line(names, logs, tmp_path):
    lines = []
    for write in (
        lambda: prepare.write_table(tmp_path, opener(logs, *names)(), ORDER),
        lambda: write_table(tmp_path / "beam", opener(logs, *names), ORDER, DIRECT),
    ):
        (tmp_path / "beam").mkdir(exist_ok=True)
        with pytest.raises(DataError) as error:
            write()
        lines.append(str(error.value).partition(" (")[0])  # what follows counts the rows read
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "config",
    [
        PrepareConfig("click", "time", 0.2, 0.2, **CLICK),
        PrepareConfig("ranking", "order", 0.2, 0.2, **CLICK),
        dataclasses.replace(ORDER, min_user_rows=2),
    ],
)
def test_what_compares_rows_is_refused(config, logs, tmp_path):
    with pytest.raises(ConfigError, match="leave --runner out"):
        write_table(tmp_path, opener(logs, DAYS[0]), config, DIRECT)


def test_options_and_sources_that_do_not_exist_are_named():
    with pytest.raises(ConfigError, match="did you mean 'direct_num_workers'"):
        dataclasses.replace(DIRECT, options=["direct_num_worker=2"])
    with pytest.raises(ConfigError, match="movielens"):
        BeamConfig("DirectRunner", "movielens")
    with pytest.raises(ConfigError, match="--runner=DataflowRunner: "):
        BeamConfig("DataflowRunner", "criteo").pipeline()


def test_a_killed_run_leaves_nothing_half_written_and_a_run_goes_on_from_the_next(logs, tmp_path):
    (tmp_path / "days").mkdir()
    for name in DAYS:
        (tmp_path / "days" / name).write_bytes((logs / name).read_bytes())
    shared = [
        sys.executable,
        "-m",
        "cadc_jax.main",
        "prepare",
        "--config=configs/criteo.py",
        f"--config.data.path={tmp_path / 'days'}",
        f"--config.data.block_bytes={BLOCK}",
        "--compilation_cache=off",
    ]
    root = pathlib.Path(__file__).parents[2]
    direct = [*shared, f"--workdir={tmp_path / 'beam'}", "--runner=DirectRunner"]
    killed = subprocess.Popen(direct, cwd=root, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("beam/prepare/.*/staging/*/*.arrow")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list(tmp_path.glob("beam/prepare/[!.]*/*"))
    alone = [*shared, f"--workdir={tmp_path / 'alone'}"]
    for command in (direct, alone):
        subprocess.run(command, cwd=root, check=True)
    again = subprocess.run([*direct[:-1]], cwd=root, check=True, capture_output=True, text=True)
    assert "reused" in again.stdout  # by the engine of one machine
    assert not list(tmp_path.glob("beam/prepare/.*.tmp"))
    tables = [files_of(tmp_path / name / "prepare") for name in ("beam", "alone")]
    manifests = [
        json.loads(table.pop(file))
        for table in tables
        for file in list(table)
        if file.endswith("manifest.json")
    ]
    assert tables[0] == tables[1]
    assert manifests[0]["settings"] == manifests[1]["settings"]

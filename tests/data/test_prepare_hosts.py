"""Several hosts, here threads, prepare the same table as a single host."""

import concurrent.futures
import dataclasses
import gzip
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from cadc_jax.data import prepare
from cadc_jax.data.hosts import SINGLE_HOST, Carrier, Hosts
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.raw import PARTS, Task
from cadc_jax.data.readers import criteo, synthetic, tabular
from cadc_jax.errors import CadcError, DataError

BLOCK = 1 << 14  # bytes: small, for many blocks and for several pieces of a plain file
CLICK = {"user_features": ("C7",), "item_features": ("C11", "C15"), "log_dense": True}
DAYS = [f"day_{day}.gz" for day in range(5)]
EVENTS = tabular.ColumnNames(
    "user", "item", "label", timestamp="time", dense=["x"], categorical=["c"]
)
RATINGS = tabular.ColumnNames("user", "item", value="rating", timestamp="time")


def log(names, **more):
    return lambda folder: criteo.open_logs([folder / x for x in names], block_bytes=BLOCK, **more)


def events(name, columns, **more):
    files = tabular.TableFiles(name, **more)
    return lambda folder: tabular.open_rows(folder, files, columns, BLOCK)


GOODS = tabular.ContentFile("goods.csv", dense=["price"], categorical=["kind"])
NOBODY = tabular.ContentFile("nobody.csv")
CASES = {
    "a plain log": (log(["log"]), PrepareConfig("click", "order", 0.2, 0.2, min_count=2, **CLICK)),
    "hashed": (
        log(["log"]),
        PrepareConfig("click", "random", 0.1, 0.1, max_vocabulary=40, **CLICK),
    ),
    "days": (log(DAYS, folds=[0, 0, 0, 1, 2]), PrepareConfig("click", "given", **CLICK)),
    "one compressed log": (log(["log.gz"]), PrepareConfig("click", "order", 0.2, 0.2, **CLICK)),
    "malformed rows": (
        log(["malformed"]),
        PrepareConfig("click", "order", 0.2, 0.2, max_malformed=0.1, **CLICK),
    ),
    "events by time": (events("events.csv", EVENTS), PrepareConfig("click", "time", 0.1, 0.2)),
    "ratings": (
        events("ratings.parquet", RATINGS, items=GOODS),
        PrepareConfig("ranking", "leave_one_out", num_negatives=5),
    ),
    "held-out users": (
        events("ratings.parquet", RATINGS, items=GOODS),
        PrepareConfig("ranking", "users", 0.2, 0.2, num_negatives=5),
    ),
    "positives by value": (
        events("ratings.parquet", RATINGS),
        PrepareConfig("ranking", "leave_one_out", min_value=3, num_negatives=5),
    ),
}
FAULTS = {
    "a truncated file": (log(["day_0.gz", "truncated.gz"]), CASES["days"][1]),
    "too many malformed rows": (
        log(["malformed"]),
        PrepareConfig("click", "order", 0.2, 0.2, max_malformed=0.001, **CLICK),
    ),
    "no label": (events("ratings.parquet", RATINGS), CASES["events by time"][1]),
    "nobody has content": (events("events.csv", EVENTS, users=NOBODY), CASES["events by time"][1]),
    "negatives are too many": (
        events("ratings.parquet", RATINGS),
        PrepareConfig("ranking", "leave_one_out", num_negatives=500),
    ),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder with all the raw files."""
    folder = tmp_path_factory.mktemp("raw")
    synthetic.write_criteo(folder / "log", 2300, seed=0)
    text = (folder / "log").read_bytes()
    (folder / "log.gz").write_bytes(gzip.compress(text))
    lines = text.splitlines(keepends=True)
    for day, name in enumerate(DAYS):
        rows = lines[day * 400 : (day + 1) * 400 - 17 * day]
        (folder / name).write_bytes(gzip.compress(b"".join(rows)))
    (folder / "truncated.gz").write_bytes((folder / "day_1.gz").read_bytes()[:-2000])
    for row in (700, 1200, 1201, 1202, 1900, 2299):
        lines[row] = b"2" + lines[row]
    lines[900] = lines[900].rpartition(b"\t")[0] + b"\n"
    (folder / "malformed").write_bytes(b"".join(lines))

    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 60, 2000), rng.integers(0, 90, 2000)
    columns = {"user": [f"u{x}" for x in user], "item": item, "time": rng.integers(0, 9999, 2000)}
    clicks = {"label": rng.integers(0, 2, 2000), "x": rng.normal(size=2000), "c": item % 7}
    pyarrow.csv.write_csv(pa.table(columns | clicks), folder / "events.csv")
    ratings = pa.table(columns | {"rating": rng.integers(1, 6, 2000)})
    pyarrow.parquet.write_table(ratings, folder / "ratings.parquet", row_group_size=150)
    goods = {"id": np.arange(90), "price": rng.normal(size=90), "kind": np.arange(90) % 4}
    pyarrow.csv.write_csv(pa.table(goods), folder / "goods.csv")
    (folder / "nobody.csv").write_text("id\nnobody\n")
    return folder


def prepare_on(source, path, config, hosts=SINGLE_HOST):
    """Prepares a table; returns its facts, or the type and text of the error, and bytes decoded."""
    decoded = []

    def noted(task):
        decoded.append(task.consumed)
        return task.decode()

    def noting(part):
        return lambda: (Task(task.consumed, lambda task=task: noted(task)) for task in part())

    source = dataclasses.replace(source, parts=[noting(part) for part in source.parts])
    try:
        result = prepare.write_table(path, source, config, hosts)
    except CadcError as error:
        result = type(error), str(error)
    return result, sum(decoded)


def prepare_together(sources, path, config):
    """Prepares one table on as many hosts as there are sources; returns what each host returns."""
    path.mkdir(parents=True)
    barrier = threading.Barrier(len(sources))

    def run(index, source):
        hosts = Hosts(index, len(sources), lambda name: barrier.wait(60))
        return prepare_on(source, path, config, hosts)

    with concurrent.futures.ThreadPoolExecutor(len(sources)) as pool:
        futures = [pool.submit(run, index, source) for index, source in enumerate(sources)]
        return [future.result(timeout=100) for future in futures]


def prepare_apart(sources, path, config):
    """The same with a folder for each host, and one from which they copy files of the others."""
    common = path / "common"
    barrier = threading.Barrier(len(sources))

    def run(index, source):
        own = path / str(index)
        own.mkdir(parents=True)

        def give(files):
            for file in files:
                (common / file.relative_to(own)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, common / file.relative_to(own))

        def take(files):
            for file in files:
                if not file.exists():
                    shutil.copy(common / file.relative_to(own), file)

        wait = lambda name: barrier.wait(60)  # noqa: E731
        hosts = Hosts(index, len(sources), wait, Carrier(give, take))
        return prepare_on(source, own, config, hosts)[0]

    with concurrent.futures.ThreadPoolExecutor(len(sources)) as pool:
        futures = [pool.submit(run, index, source) for index, source in enumerate(sources)]
        return [future.result(timeout=100) for future in futures]


def contents(path):
    return {str(x.relative_to(path)): x.read_bytes() for x in path.rglob("*") if x.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_several_hosts_write_the_same_bytes_as_one(raw, tmp_path, case):
    make, config = CASES[case]
    facts, _ = prepare_on(make(raw), tmp_path / "one", config)
    expected = contents(tmp_path / "one")
    assert isinstance(facts, dict) and len(expected) > 15
    for count in (2, 3):
        path = tmp_path / str(count)
        results = prepare_together([make(raw) for _ in range(count)], path, config)
        assert [found for found, _ in results] == [facts] * count
        found = contents(path)
        assert sorted(found) == sorted(expected)
        assert [name for name in expected if found[name] != expected[name]] == []
        assert all(decoded for _, decoded in results)  # each host has done a part


@pytest.mark.parametrize("case", CASES)
def test_hosts_that_share_no_folder_write_the_same_bytes(raw, tmp_path, case):
    make, config = CASES[case]
    facts, _ = prepare_on(make(raw), tmp_path / "one", config)
    expected = contents(tmp_path / "one")
    results = prepare_apart([make(raw) for _ in range(3)], tmp_path / "apart", config)
    assert results == [facts] * 3
    found = contents(tmp_path / "apart" / "0")
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    columns = [name for name in expected if name.startswith(PARTS)]
    own = {f"{name}.part1" for name in columns if "negatives" not in name}
    assert own == {name for name in contents(tmp_path / "apart" / "1") if "staging" not in name}


@pytest.mark.parametrize("case", FAULTS)
def test_all_hosts_raise_the_error_that_one_host_raises(raw, tmp_path, case):
    make, config = FAULTS[case]
    error, _ = prepare_on(make(raw), tmp_path / "one", config)
    assert isinstance(error, tuple)
    for count in (2, 3):
        sources = [make(raw) for _ in range(count)]
        results = prepare_together(sources, tmp_path / str(count), config)
        assert [found for found, _ in results] == [error] * count


def test_the_first_malformed_row_stops_all_hosts(raw, tmp_path):
    """The number of rows read before that varies, and with it the message."""
    make, config = log(["malformed"]), CASES["a plain log"][1]
    results = prepare_together([make(raw), make(raw)], tmp_path / "table", config)
    assert results[0][0] == results[1][0]
    kind, message = results[0][0]
    assert kind is DataError and message.startswith(f"{raw / 'malformed'}:")
    assert "of the" in message and "rows read are malformed" in message


def test_the_error_of_the_barrier_reaches_the_caller(raw, tmp_path):
    def wait(name):
        raise TimeoutError(name)

    make, config = CASES["a plain log"]
    with pytest.raises(TimeoutError, match="prepare/read"):
        prepare.write_table(tmp_path, make(raw), config, hosts=Hosts(0, 2, wait))


def test_hosts_with_different_raw_files_are_told(raw, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "log").write_bytes((raw / "log").read_bytes()[:-100_000])
    make, config = CASES["a plain log"]
    sources = [make(raw), make(tmp_path / "raw")]
    for (kind, message), _ in prepare_together(sources, tmp_path / "table", config):
        assert kind is DataError and "not of the same size on every host" in message

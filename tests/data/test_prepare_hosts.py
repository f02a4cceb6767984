"""Several hosts, here processes, that prepare one table: it is the one that a single host makes."""

import concurrent.futures
import gzip
import multiprocessing
import pathlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from cadc_jax.data import prepare
from cadc_jax.data import raw as raw_rows
from cadc_jax.data.hosts import ALONE, Hosts
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.readers import criteo, synthetic, tabular
from cadc_jax.errors import CadcError

BLOCK = 4096  # bytes, so that there are many of them, and pieces of a plain file
CLICK = {"user_features": ("C7",), "item_features": ("C11", "C15"), "log_dense": True}
DAYS = [f"day_{day}.gz" for day in range(5)]
EVENTS = tabular.ColumnNames(
    "user", "item", "label", timestamp="time", dense=["x"], categorical=["c"]
)
RATINGS = tabular.ColumnNames("user", "item", value="rating", timestamp="time")


def log(names, **more):
    return lambda folder: criteo.open_logs([folder / x for x in names], block_bytes=BLOCK, **more)


def events(name, columns, **more):
    return lambda folder: tabular.open_rows(folder, name, columns, block_bytes=BLOCK, **more)


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
}
FAULTS = {
    "a truncated file": (log(["day_0.gz", "truncated.gz"]), CASES["days"][1]),
    "too many malformed rows": (
        log(["malformed"]),
        PrepareConfig("click", "order", 0.2, 0.2, max_malformed=0.001, **CLICK),
    ),
    "a malformed row": (log(["malformed"]), CASES["a plain log"][1]),
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


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, context) as pool:
        yield pool


def barrier(folder, index, count):
    """A barrier of files."""

    def wait(name):
        place = folder / name.replace("/", "-")
        place.mkdir(exist_ok=True)
        (place / str(index)).touch()
        end = time.monotonic() + 60
        while len(list(place.iterdir())) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{name}: not all of {count} hosts came")
            time.sleep(0.002)

    return wait


def work(raw, path, case, index=0, count=1):
    """Prepares the case as one of some hosts; returns its facts or its error, and bytes decoded."""
    hosts = ALONE
    if count > 1:
        (path.parent / "barrier").mkdir(exist_ok=True)
        hosts = Hosts(index, count, barrier(path.parent / "barrier", index, count))
    make, config = (CASES | FAULTS)[case]
    decoded = []

    def counted(part):
        for task in part():
            yield raw_rows.Task(
                task.consumed, lambda task=task: decoded.append(task) or task.decode()
            )

    source = make(raw)
    parts = [lambda part=part: counted(part) for part in source.parts]
    source = raw_rows.RawData(**{**vars(source), "parts": parts})
    try:
        result = prepare.write_table(path, source, config, hosts=hosts)
    except CadcError as error:
        result = (type(error).__name__, str(error))
    return result, sum(task.consumed for task in decoded)


def together(processes, raw, path, case, count):
    path.mkdir(parents=True)
    futures = [processes.submit(work, raw, path, case, index, count) for index in range(count)]
    return [future.result(timeout=100) for future in futures]


def contents(path):
    return {str(x.relative_to(path)): x.read_bytes() for x in path.rglob("*") if x.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_several_hosts_write_the_table_of_one_byte_for_byte(raw, processes, tmp_path, case):
    facts, _ = work(raw, tmp_path / "alone", case)
    expected = contents(tmp_path / "alone")
    assert isinstance(facts, dict) and len(expected) > 15
    for count in (2, 3):
        path = tmp_path / str(count) / "table"
        results = together(processes, raw, path, case, count)
        assert [each for each, _ in results] == [facts] * count
        found = contents(path)
        assert sorted(found) == sorted(expected)
        assert [name for name in expected if found[name] != expected[name]] == []
        print(f"{case}: bytes decoded by each host: {[decoded for _, decoded in results]}")
        assert all(decoded for _, decoded in results)


@pytest.mark.parametrize("case", [case for case in FAULTS if case != "a malformed row"])
def test_a_fault_that_one_host_meets_is_told_by_all_as_by_one(raw, processes, tmp_path, case):
    error, _ = work(raw, tmp_path / "alone", case)
    assert isinstance(error, tuple)
    for count in (2, 3):
        results = together(processes, raw, tmp_path / str(count) / "table", case, count)
        assert [each for each, _ in results] == [error] * count


def test_the_first_malformed_row_stops_all_hosts(raw, processes, tmp_path):
    """How many rows were read by then is a matter of time."""
    results = together(processes, raw, tmp_path / "table", "a malformed row", 2)
    assert results[0][0] == results[1][0]
    kind, message = results[0][0]
    assert kind == "DataError" and message.startswith(f"{raw / 'malformed'}:")
    assert "of the" in message and "rows read are malformed" in message


def test_a_host_that_does_not_come_is_the_callers_affair(raw, tmp_path):
    def wait(name):
        raise TimeoutError(name)

    make, config = CASES["a plain log"]
    with pytest.raises(TimeoutError, match="prepare/read"):
        prepare.write_table(tmp_path, make(raw), config, hosts=Hosts(0, 2, wait))


def test_hosts_that_see_other_files_are_told_so(raw, processes, tmp_path):
    """Each process has a raw folder of its own here."""
    other = pathlib.Path(tmp_path / "raw")
    other.mkdir()
    (other / "log").write_bytes((raw / "log").read_bytes()[:-100_000])
    (tmp_path / "table").mkdir()
    futures = [
        processes.submit(work, folder, tmp_path / "table", "a plain log", index, 2)
        for index, folder in enumerate((raw, other))
    ]
    for future in futures:
        kind, message = future.result(timeout=100)[0]
        assert kind == "DataError" and "not of the same size on every host" in message

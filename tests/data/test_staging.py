"""Reading a source in parallel: order, bounds and faults."""

import dataclasses
import json
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from cadc_jax.data import raw, staging
from cadc_jax.data.hosts import Hosts
from cadc_jax.data.raw import ReadReport
from cadc_jax.errors import DataError


def source(parts, decode=lambda rows: rows, confirm=lambda: None, **report):
    """Chunks of the given rows; `parts` is a list of lists of lists of labels."""

    def chunk(rows):
        rows = decode(rows)
        return raw.Chunk(raw.table_of({"label": rows}), ReadReport(len(rows), **report))

    def tasks(part):
        for rows in part:
            yield raw.Task(1, lambda rows=rows: chunk(rows))

    readers = [lambda part=part: tasks(part) for part in parts]
    return raw.RawData("here", readers, sum(map(len, parts)), confirm=confirm)


def labels(staged):
    return np.concatenate([chunk.read()["label"].to_numpy() for chunk in staged]).tolist()


def test_rows_keep_the_order_of_parts_and_chunks(tmp_path):
    rng = np.random.default_rng(0)

    def slowly(rows):
        time.sleep(rng.random() / 200)
        return rows

    parts = [[[1, 2], [3]], [], [[4]], [[5, 6], [7], [8], [9]]]
    staged, report = staging.stage_rows(tmp_path / "s", source(parts, slowly))
    assert labels(staged) == list(range(1, 10)) and report.rows == 9
    assert [chunk.start for chunk in staged] == [0, 2, 3, 4, 6, 7, 8]
    assert [chunk.rows for chunk in staged] == [2, 1, 1, 2, 1, 1, 1]
    assert staged[3].places == slice(4, 6)


def test_rows_may_be_changed_before_they_are_written(tmp_path):
    def change(rows):
        return rows.append_column("value", pa.array(rows["label"].to_numpy() * 2))

    staged, _ = staging.stage_rows(tmp_path / "s", source([[[1], [2]]]), change=change)
    assert [chunk.read()["value"].to_pylist() for chunk in staged] == [[2.0], [4.0]]


def test_a_chunk_can_be_read_by_columns(tmp_path):
    def change(rows):
        return rows.append_column("user", raw.coded(np.array(["a"] * len(rows))))

    (chunk,), _ = staging.stage_rows(tmp_path / "s", source([[[1, 2]]]), change=change)
    assert chunk.read(["user"]).column_names == ["user"]
    assert chunk.read(["user"])["user"].to_pylist() == ["a", "a"]
    assert chunk.read(["label", "fold"])["label"].to_pylist() == [1, 2]
    assert chunk.read(["fold"]).column_names == []


def test_only_a_few_blocks_are_in_memory_at_a_time(tmp_path):
    lock, waiting, most = threading.Lock(), 0, 0

    def tasks():
        nonlocal waiting, most
        for number in range(50):
            with lock:
                waiting += 1
                most = max(most, waiting)
            yield raw.Task(1, lambda number=number: decode(number))

    def decode(number):
        nonlocal waiting
        time.sleep(0.002)
        with lock:
            waiting -= 1
        return raw.Chunk(raw.table_of({"label": [number]}), ReadReport(1))

    staged, _ = staging.stage_rows(tmp_path / "s", raw.RawData("here", [tasks], 50))
    assert labels(staged) == list(range(50))
    assert most <= staging.WORKERS + 2


def test_the_first_of_several_faults_is_raised_and_reading_stops(tmp_path):
    decoded = []

    def fail(rows):
        decoded.append(rows)
        if rows[0] in (3, 4):
            time.sleep(0.05 * (4 - rows[0]))  # the fault in row 4 happens first
            raise DataError(f"bad {rows[0]}")
        return rows

    parts = [[[number] for number in range(1000)]]
    with pytest.raises(DataError, match="bad 3"):
        staging.stage_rows(tmp_path / "s", source(parts, fail))
    assert len(decoded) < 100


def test_a_fault_of_the_reader_is_raised(tmp_path):
    def tasks():
        yield from ()
        raise DataError("truncated")

    with pytest.raises(DataError, match="truncated"):
        staging.stage_rows(tmp_path / "s", raw.RawData("here", [tasks], 1))


def test_malformed_rows_are_left_out_up_to_a_share(tmp_path):
    bad = source([[[1], [2]]], malformed=1, examples=("here:7: bad",))
    with pytest.raises(DataError, match=r"here:7: bad \((1 of the 2|2 of the 4) rows"):
        staging.stage_rows(tmp_path / "a", bad)
    _, report = staging.stage_rows(tmp_path / "b", bad, max_malformed=0.5)
    assert report == ReadReport(2, malformed=2, examples=("here:7: bad", "here:7: bad"))


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="here: no rows"):
        staging.stage_rows(tmp_path / "s", source([[]]))


def test_a_source_that_changed_meanwhile_is_refused(tmp_path):
    def changed():
        raise DataError("changed")

    with pytest.raises(DataError, match="changed"):
        staging.stage_rows(tmp_path / "s", source([[[1]]], confirm=changed))


def test_results_over_chunks_keep_their_order(tmp_path):
    staged, _ = staging.stage_rows(tmp_path / "s", source([[[1, 2], [3], [4]]]))

    def count(chunk):
        time.sleep(0.01 * chunk.rows)
        return len(chunk.read())

    assert list(staging.map_chunks("test", count, staged)) == [2, 1, 1]


def test_an_ordered_map_keeps_the_order_and_runs_only_a_little_ahead():
    started = []

    def double(x):
        started.append(x)
        time.sleep(0.001 * (x % 3))
        return 2 * x

    results = staging.ordered_map(double, range(100))
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 2 * staging.WORKERS + 2
    assert list(results) == list(range(2, 200, 2))


# What another host tells.

SHARE = {
    "chunks": [[0, 1, 5]],
    "report": {"rows": 5, "padded": 0, "malformed": 1, "examples": ["here:7: bad"]},
    "changed": None,
    "failed": None,
    "sizes": [2],
}


def stage_beside(tmp_path, share):
    """The first of two hosts stages its share, one row, and the second one tells `share`."""
    line = {"failure": None, "plain": share, "tables": []}

    def wait(name):
        (tmp_path / "read.1").write_text(f"{json.dumps(line)}\n\n")

    here = dataclasses.replace(source([[[1], [2]]]), sizes=[2])
    return staging.stage_rows(tmp_path, here, max_malformed=0.5, hosts=Hosts(0, 2, wait))


def test_the_chunks_of_all_hosts_follow_each_other(tmp_path):
    (own, other), report = stage_beside(tmp_path, SHARE)
    assert (own.path, own.start, own.rows, own.host) == (tmp_path / "0.0.arrow", 0, 1, 0)
    assert (other.path, other.start, other.rows, other.host) == (tmp_path / "0.1.arrow", 1, 5, 1)
    assert report == ReadReport(6, 0, 1, ("here:7: bad",))


def test_the_error_of_another_host_is_raised(tmp_path):
    failed = {"kind": "DataError", "text": "day_3: truncated"}
    with pytest.raises(DataError, match="^day_3: truncated$"):
        stage_beside(tmp_path, SHARE | {"failed": failed})


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunks": [["../0", 1, 5]]},
        {"chunks": [[0, 1, -5]]},
        {"chunks": [[0, 1]]},
        {"report": {"rows": 5}},
        {"failed": "truncated"},
        {"sizes": None},
    ],
    ids=str,
)
def test_a_share_of_another_kind_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match=r"read\.1: not what another host of this run writes"):
        stage_beside(tmp_path, SHARE | wrong)


def test_a_chunk_whose_codes_lead_outside_its_dictionary_is_refused(tmp_path):
    codes = pa.py_buffer(np.array([0, 1 << 20], np.int32))
    indices = pa.Array.from_buffers(pa.int32(), 2, [None, codes])
    user = pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)
    rows = pa.table({"user": user})
    with pa.ipc.new_file(tmp_path / "0.0.arrow", rows.schema) as out:
        out.write_table(rows)
    chunk = staging.StagedChunk(tmp_path / "0.0.arrow", 0, 2)
    for names in (None, ["user"]):
        with pytest.raises(pa.ArrowInvalid, match="out of bounds"):
            chunk.read(names)

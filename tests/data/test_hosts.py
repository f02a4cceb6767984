"""Shares of several hosts, and the exchange of results as plain data."""

import concurrent.futures
import itertools
import json
import os
import pickle
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax.data import hosts
from cadc_jax.data.hosts import Form, Hosts, Message
from cadc_jax.errors import ArtifactError, ConfigError, DataError, TrainingError


def shares(sizes, count):
    return [hosts.share_of(Hosts(index, count), sizes) for index in range(count)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 9))
def test_every_byte_has_one_host_and_shares_are_about_equal(sizes, count):
    found = shares(sizes, count)
    assert found[0][0] == -np.inf and found[-1][1] == np.inf
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    bounded = np.clip(found, 0, sum(sizes))
    lengths = np.diff(bounded)
    assert (lengths >= 0.74 * sum(sizes) / count).all()
    assert (lengths <= 1.26 * sum(sizes) / count).all()


def test_borders_move_to_a_near_border_of_a_part():
    assert shares([100, 104, 96, 99], 2) == [(-np.inf, 204), (204, np.inf)]
    assert shares([100] * 10, 3) == [(-np.inf, 300), (300, 700), (700, np.inf)]
    assert shares([100], 2) == [(-np.inf, 50), (50, np.inf)]
    assert shares([100, 50], 2) == [(-np.inf, 75), (75, np.inf)]


def test_a_single_host_has_everything():
    assert shares([3, 4], 1) == [(-np.inf, np.inf)]


# Exchange.


PAIRS = pa.schema([("text", pa.string()), ("number", pa.float64())])
# A number, and texts with numbers.
FORM = Form(
    lambda result: Message(result[0], {"pairs": result[1]}),
    lambda message: (message.plain, message.table("pairs", PAIRS)),
)


def result_of(index):
    rows = {"text": [f"a{index}", ""], "number": [0.1 + index, np.nan]}
    return 10 * index, pa.table(rows, schema=PAIRS)


def on_all_hosts(count, call):
    """Results or exceptions of `call(hosts)` on each of `count` hosts, which are threads."""
    barrier = threading.Barrier(count)

    def run(index):
        return call(Hosts(index, count, lambda name: barrier.wait(60)))

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, index) for index in range(count)]
        return [future.exception() or future.result() for future in futures]


def beside(tmp_path, write):
    """What the first of two hosts gets if `write(path)` writes the file of the second one."""
    found = hosts.exchange(
        Hosts(0, 2, lambda name: write(tmp_path / "x.1")),
        tmp_path,
        "x",
        lambda: result_of(0),
        FORM,
    )
    return list(found)


@pytest.fixture
def told(tmp_path):
    """The bytes that the second of two hosts writes."""
    folder = tmp_path / "told"
    folder.mkdir()
    on_all_hosts(
        2, lambda this: hosts.exchange(this, folder, "x", lambda: result_of(this.index), FORM)
    )
    return (folder / "x.1").read_bytes()


def test_a_single_host_exchanges_nothing(tmp_path):
    result = object()  # it need not be told to anybody
    assert list(hosts.exchange(hosts.SINGLE_HOST, tmp_path, "x", lambda: result, FORM)) == [result]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [2, 3])
def test_every_host_gets_the_results_of_all_in_their_order(tmp_path, count):
    def call(this):
        return list(hosts.exchange(this, tmp_path, "x", lambda: result_of(this.index), FORM))

    for found in on_all_hosts(count, call):
        assert [plain for plain, _ in found] == [10 * index for index in range(count)]
        for index, (_, table) in enumerate(found):
            expected = result_of(index)[1]
            assert table["text"] == expected["text"]
            assert table["number"].to_numpy().tobytes() == expected["number"].to_numpy().tobytes()


@pytest.mark.parametrize("kind", [ConfigError, DataError, ArtifactError, TrainingError])
def test_every_host_raises_the_error_of_the_first_host_that_failed(tmp_path, kind):
    def call(this):
        def work():
            if this.index:
                raise kind(f"day_3:7: 'x', of host {this.index}")
            return result_of(0)

        return list(hosts.exchange(this, tmp_path, "x", work, FORM))

    errors = on_all_hosts(3, call)
    assert [(type(error), str(error)) for error in errors] == [
        (kind, "day_3:7: 'x', of host 1")
    ] * 3


def test_another_error_keeps_its_class_only_where_it_happened(tmp_path):
    mistake = ValueError("a bug")

    def call(this):
        def work():
            if this.index == 1:
                raise mistake
            return result_of(0)

        return list(hosts.exchange(this, tmp_path, "x", work, FORM))

    other, own = on_all_hosts(2, call)
    assert own is mistake  # with its traceback
    assert (type(other), str(other)) == (RuntimeError, "ValueError: a bug")


def test_a_result_that_cannot_be_told_is_an_error_of_every_host(tmp_path):
    def call(this):
        result = (object() if this.index else 0), result_of(0)[1]
        return list(hosts.exchange(this, tmp_path, "x", lambda: result, FORM))

    other, own = on_all_hosts(2, call)
    assert isinstance(own, TypeError) and "not JSON serializable" in str(own)
    assert str(other) == f"TypeError: {own}"


def test_the_barrier_has_the_name_of_the_exchange(tmp_path):
    def wait(name):
        raise TimeoutError(name)

    with pytest.raises(TimeoutError, match="prepare/x"):
        hosts.exchange(Hosts(0, 2, wait), tmp_path, "x", lambda: result_of(0), FORM)


# Files that no host writes.


def line(**fields):
    return json.dumps({"failure": None, "plain": 7, "tables": []} | fields).encode() + b"\n"


def stream(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


def outside():
    """Two texts, with a border between them behind the end of their buffer."""
    borders = pa.py_buffer(np.array([0, 1 << 30, 1], np.int32))
    text = pa.StringArray.from_buffers(2, borders, pa.py_buffer(b"a"))
    return pa.table([text, pa.array([1.0, 2.0])], schema=PAIRS)


GOOD = result_of(1)[1]
NO_VALUE = pa.table({"text": ["a", None], "number": [1.0, 2.0]}, schema=PAIRS)
BAD = {
    "nothing": (b"", "its first line does not end"),
    "no line": (b"{" * 100, "its first line does not end"),
    "no JSON": (b"hello\n", "Expecting value"),
    "nested JSON": (b"[" * 100_000 + b"\n", "recursion"),
    "no object": (b"7\n", "the line is no JSON object"),
    "no failure": (b'{"plain": 7, "tables": []}\n', "failure is missing"),
    "an error without a text": (line(failure={"kind": "DataError"}), "text is missing"),
    "no list of tables": (line(tables=7), "tables is no list"),
    "no such table": (line() + b"\n", "no table 'pairs' of text string, number double"),
    "an end before its tables": (line(tables=["pairs"]), ""),
    "more": (line(tables=["pairs"]) + stream(GOOD) + b"\n\n", "does not end"),
    "other columns": (
        line(tables=["pairs"]) + stream(GOOD.select(["text"])) + b"\n",
        "no table 'pairs'",
    ),
    "a missing value": (line(tables=["pairs"]) + stream(NO_VALUE) + b"\n", "missing values"),
    "text outside": (line(tables=["pairs"]) + stream(outside()), "out of bounds"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(tmp_path, fault):
    content, text = BAD[fault]
    with pytest.raises(DataError) as error:
        beside(tmp_path, lambda path: path.write_bytes(content))
    (only,) = str(error.value).splitlines()
    assert only.startswith(f"{tmp_path / 'x.1'}: not what another host of this run writes (")
    assert text in only and "the same version of cadc_jax on all hosts" in only


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path, told):
    beside(tmp_path, lambda path: path.write_bytes(told))  # whole, it is not
    for length in [*range(0, len(told), 7), *range(len(told) - 20, len(told))]:
        with pytest.raises(DataError, match=r"x\.1: not what another host"):
            beside(tmp_path, lambda path, cut=told[:length]: path.write_bytes(cut))


def test_a_long_first_line_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "_MAX_LINE", 1000)
    with pytest.raises(DataError, match="its first line does not end"):
        beside(tmp_path, lambda path: path.write_bytes(line(plain="a" * 1000)))


@pytest.mark.parametrize("make", ["link", "fifo", "folder", "none"])
def test_only_a_plain_file_is_read(tmp_path, told, make):
    (tmp_path / "elsewhere").write_bytes(told)

    def write(path):
        if make == "link":
            path.symlink_to(tmp_path / "elsewhere")
        elif make == "fifo":
            os.mkfifo(path)
        elif make == "folder":
            path.mkdir()

    with pytest.raises(DataError, match=r"x\.1: .*(no plain file|No such file)"):
        beside(tmp_path, write)


class Trap:
    """Makes the folder `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()  # the trap works
    content = pickle.dumps(None) + pickle.dumps(Trap(tmp_path / "trap"))
    with pytest.raises(DataError, match="not what another host"):
        beside(tmp_path, lambda path: path.write_bytes(content))
    assert not (tmp_path / "trap").exists()


def test_an_error_of_another_host_names_no_class_of_its_choice(tmp_path):
    told = line(failure={"kind": "SystemExit", "text": "0"})
    with pytest.raises(RuntimeError, match="^0$"):
        beside(tmp_path, lambda path: path.write_bytes(told))

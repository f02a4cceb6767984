"""Users and items of few rows are left out until each that stays has enough."""

import collections
import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cadc_jax.data import core, prepare, raw, staging
from cadc_jax.data.hosts import Hosts
from cadc_jax.data.raw import TEST, TRAIN, RawTable, ReadReport
from cadc_jax.errors import ConfigError, DataError
from tests.data.tables import RANKING, interactions, prepared


def staged(folder, user, item, fold=None, rows=3):
    """Chunks of at most so many rows, whose users are text."""
    chunks = []

    def tasks():
        for start in range(0, len(user), rows):
            part = slice(start, start + rows)
            columns = {"user": np.array([f"u{x}" for x in user[part]]), "item": item[part]}
            if fold is not None:
                columns["fold"] = fold[part]
            table = raw.table_of(columns)
            chunk = raw.Chunk(table, ReadReport(len(table)))
            yield raw.Task(len(table), lambda chunk=chunk: chunk)

    source = raw.RawData("the log", [tasks], len(user))
    chunks, _ = staging.stage_rows(folder, source)
    return chunks


def rows_left(chunks):
    assert [chunk.start for chunk in chunks] == [
        sum(x.rows for x in chunks[:place]) for place in range(len(chunks))
    ]
    tables = [chunk.read() for chunk in chunks]
    assert [len(table) for table in tables] == [chunk.rows for chunk in chunks]
    return [
        (int(user[1:]), item)
        for table in tables
        for user, item in zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True)
    ]


def core_of(pairs, least):
    """The core by its definition: one user or item after the other is left out."""
    pairs = list(pairs)
    while True:
        counts = [collections.Counter(pair[side] for pair in pairs) for side in (0, 1)]
        few = [(side, x) for side in (0, 1) for x, n in counts[side].items() if n < least[side]]
        if not few:
            return pairs
        side, value = few[0]
        pairs = [pair for pair in pairs if pair[side] != value]


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_what_is_left_is_the_core_in_the_order_of_the_log(tmp_path_factory, pairs, least):
    folder = tmp_path_factory.mktemp("core")
    user, item = np.array(pairs).T
    want = core_of(pairs, least)
    chunks = staged(folder, user, item)
    if not want:
        with pytest.raises(DataError, match="no row is left; lower them"):
            core.cut(folder, chunks, *least)
        return
    kept, left_out = core.cut(folder, chunks, *least)
    assert rows_left(kept) == want
    assert left_out.rows == len(pairs) - len(want)
    assert left_out.users == len({u for u, _ in pairs}) - len({u for u, _ in want})
    assert left_out.items == len({i for _, i in pairs}) - len({i for _, i in want})
    assert {file.name for file in folder.iterdir()} == {chunk.path.name for chunk in kept}


def test_held_out_rows_do_not_count_and_stay_with_their_user_and_item(tmp_path):
    user = np.array([1, 1, 2, 2, 3, 3, 1, 3])
    item = np.array([7, 8, 7, 8, 9, 7, 8, 7])
    fold = np.array([TRAIN] * 6 + [TEST] * 2, np.int8)
    kept, left_out = core.cut(tmp_path, staged(tmp_path, user, item, fold), 2, 2)
    # Item 9 has one row, then user 3 has one training row; the test row of user 3 goes with it.
    assert rows_left(kept) == [(1, 7), (1, 8), (2, 7), (2, 8), (1, 8)]
    assert left_out == core.LeftOut(rows=3, users=1, items=1)


def test_a_table_of_the_core_is_that_of_a_log_with_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.unique(rng.integers(0, [12, 15], (100, 2)), axis=0))
    table = RawTable(
        ReadReport(len(pairs)), user=pairs[:, 0], item=pairs[:, 1], timestamp=np.arange(len(pairs))
    )
    want = core_of([(u, i, n) for n, (u, i) in enumerate(pairs.tolist())], (4, 4))
    assert 0 < len(want) < len(pairs)
    places = [n for _, _, n in want]
    cut = dataclasses.replace(
        table,
        report=ReadReport(len(places)),
        **{name: getattr(table, name)[places] for name in ("user", "item", "timestamp")},
    )
    (tmp_path / "core").mkdir()
    (tmp_path / "log").mkdir()
    plain = dataclasses.replace(RANKING, num_negatives=0)
    asked = dataclasses.replace(plain, min_user_rows=4, min_item_rows=4)
    found, facts = prepared(tmp_path / "core", table, asked)
    wanted, _ = prepared(tmp_path / "log", cut, plain)
    for part, rows in wanted.splits.items():
        for name, column in rows.items():
            np.testing.assert_array_equal(found.splits[part][name], column)
    assert facts["core"]["rows"] == len(pairs) - len(places)
    assert facts["reader"]["rows"] == len(places)


@pytest.mark.parametrize("field", ["min_user_rows", "min_item_rows"])
def test_a_negative_number_of_rows_is_refused(field):
    with pytest.raises(ConfigError, match=f"data.{field}=-1: must be at least 0"):
        dataclasses.replace(RANKING, **{field: -1})


def test_one_row_each_leaves_out_nothing(tmp_path):
    config = dataclasses.replace(RANKING, min_user_rows=1, min_item_rows=1)
    assert "core" not in prepared(tmp_path, interactions(), config)[1]


def test_several_hosts_refuse(tmp_path):
    config = dataclasses.replace(RANKING, min_user_rows=2)
    hosts = Hosts(0, 2, lambda name: None)
    with pytest.raises(ConfigError, match="one process has to prepare such a table"):
        prepare.write_table(tmp_path, raw.of_table(interactions()), config, hosts)

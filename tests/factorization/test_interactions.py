"""The interaction matrix of a log, and its packing into chunks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cadc_jax.errors import DataError
from cadc_jax.factorization.interactions import (
    Chunking,
    Interactions,
    Layout,
    SparseRows,
    check_places,
    make_layout,
    pack,
    pieces_of,
    scaled_values,
    share_of_rows,
)
from tests.factorization import reference


def unpack(rows, layout, fixed_position, num_columns):
    """The dense matrix that the chunks hold."""
    column = np.full(fixed_position.max() + 1, -1)
    column[fixed_position] = np.arange(num_columns)
    matrix = np.zeros((len(layout.counts), num_columns))
    for part, chunks in enumerate(pack(rows, layout, fixed_position)):
        names = {}
        for row in range(len(layout.counts)):
            if (layout.chunk[row] == layout.chunks) == bool(part):
                chunk = None if part else int(layout.chunk[row])
                names[chunk, int(layout.slot[row])] = row
        for c, s in np.ndindex(chunks.row.shape):
            for place in range(chunks.length[c, s]):
                row = names[None if part else c, int(chunks.row[c, s])]
                value = 1 if chunks.value is None else chunks.value[c, s, place]
                matrix[row, column[chunks.index[c, s, place]]] += value
    return matrix


def test_the_values_of_repeated_pairs_are_added():
    x = Interactions.from_rows([0, 1, 0], [2, 0, 2], 2, 3, [1.0, 5.0, 0.5])
    assert (x.num_users, x.num_items, x.num_entries) == (2, 3, 2)
    np.testing.assert_array_equal(x.by_user.columns, [2, 0])
    np.testing.assert_array_equal(x.by_user.values, [1.5, 5.0])
    np.testing.assert_array_equal(x.by_item.offsets, [0, 1, 1, 2])
    np.testing.assert_array_equal(x.by_item.values, [5.0, 1.5])


def test_rows_without_values_count_as_one_each():
    x = Interactions.from_rows([0, 0, 0], [1, 1, 0], 1, 2)
    np.testing.assert_array_equal(x.by_user.values, [1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], [0, 0], 2, 1), r"user ids run from 0 to 2, outside \[0, 2\)"),
        (([0, 1], [0, -1], 2, 1), r"item ids run from -1 to 0, outside \[0, 1\)"),
        (([0], [0, 0], 1, 1), "have 1, 2 and 1 rows"),
        (([0, 0], [0, 0], 1, 1, [1, np.nan]), "1 values are not finite"),
    ],
)
def test_rows_that_cannot_be_right_are_rejected(arguments, message):
    with pytest.raises(DataError, match=message):
        Interactions.from_rows(*arguments)


@settings(max_examples=60)
@given(
    users=st.integers(1, 12),
    items=st.integers(1, 12),
    entries=st.integers(0, 80),
    chunk=st.sampled_from([2, 5, 16, 64]),
    devices=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_chunks_hold_every_entry_once(users, items, entries, chunk, devices, seed):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, entries)
    item = rng.integers(0, items, entries)
    value = rng.integers(1, 4, entries).astype(np.float32)
    x = Interactions.from_rows(user, item, users, items, value)
    by_user = make_layout(x.by_user.counts, Chunking(chunk), devices)
    by_item = make_layout(x.by_item.counts, Chunking(chunk), devices)
    want = reference.dense(user, item, value, users, items)
    np.testing.assert_array_equal(unpack(x.by_user, by_user, by_item.position, items), want)
    np.testing.assert_array_equal(unpack(x.by_item, by_item, by_user.position, users), want.T)
    for layout in (by_user, by_item):
        assert len(set(layout.position)) == len(layout.position)
        assert layout.position.max() < layout.table_rows
        assert layout.table_rows % devices == 0


@settings(max_examples=60)
@given(
    rows=st.integers(1, 12),
    entries=st.integers(0, 120),
    chunk=st.sampled_from([2, 5, 16, 64]),
    overhead=st.sampled_from([1, 4, 64]),
    own=st.sampled_from([[0], [3], [1, 2], [0, 2], [0, 1, 2, 3]]),
    seed=st.integers(0, 99),
)
def test_the_chunks_of_some_devices_are_those_of_all_devices(
    rows, entries, chunk, overhead, own, seed
):
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, rows, entries), rng.integers(0, 30, entries)
    value = rng.integers(1, 3, entries).astype(np.float32)
    x = Interactions.from_rows(row, column, rows, 30, value).by_user
    layout = make_layout(x.counts, Chunking(chunk, None, overhead), devices=4)
    position = rng.permutation(30).astype(np.int32)
    wholes = pack(x, layout, position)
    for whole, part in zip(wholes, pack(x, layout, position, own), strict=True):
        for name in ("index", "row", "length", "value"):
            expected, found = getattr(whole, name), getattr(part, name)
            if expected is None:
                assert found is None
                continue
            by_device = np.split(expected, 4)
            np.testing.assert_array_equal(found, np.concatenate([by_device[d] for d in own]))


def test_a_device_needs_no_rows_but_its_own():
    x = Interactions.from_rows(np.arange(40).repeat(3), np.tile(np.arange(3), 40), 40, 3).by_user
    layout = make_layout(x.counts, Chunking(8), devices=4)
    taken = []

    class Watched(SparseRows):
        def take(self, rows):
            taken.append(rows)
            return super().take(rows)

    for device in range(4):
        pack(
            Watched(x.offsets, x.columns, x.values), layout, np.arange(3, dtype=np.int32), [device]
        )
    np.testing.assert_array_equal(np.sort(np.concatenate(taken)), np.arange(40))


def test_shares_of_rows_have_about_as_many_entries():
    counts = np.array([5, 1, 1, 1, 1, 1, 5, 5])
    shares = [share_of_rows(counts, process, 4) for process in range(4)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(8))
    assert max(counts[share].sum() for share in shares) <= 10


def test_each_device_stores_the_short_rows_that_it_solves():
    counts = np.random.default_rng(0).integers(0, 60, 200)
    layout = make_layout(counts, Chunking(100), devices=4)
    short = layout.chunk < layout.chunks
    solver = layout.chunk[short] // (layout.chunks // 4)
    np.testing.assert_array_equal(layout.position[short] // (layout.table_rows // 4), solver)


def test_rows_ascend_within_a_chunk():
    user, item, value = reference.sparse_data()
    x = Interactions.from_rows(user, item, reference.U, reference.I, value)
    layout = make_layout(x.by_user.counts, Chunking(64))
    for chunks in pack(x.by_user, layout, np.arange(reference.I, dtype=np.int32)):
        assert np.all(np.diff(chunks.row, axis=1) >= 0)


@pytest.mark.parametrize("exponent", [1.2, 2.0, 4.0])
def test_a_long_tailed_log_is_padded_by_less_than_half(exponent):
    counts = np.minimum(np.random.default_rng(0).zipf(exponent, 20_000), 5_000)
    rows = np.repeat(np.arange(20_000), counts)
    columns = np.concatenate([np.arange(n) for n in counts])
    x = Interactions.from_rows(rows, columns, 20_000, 5_000)
    layout = make_layout(x.by_user.counts, Chunking(2048))
    packed = pack(x.by_user, layout, np.arange(5_000, dtype=np.int32))
    assert sum(part.index.size for part in packed) < 1.5 * x.num_entries


def test_a_row_of_a_million_entries_is_split_over_chunks():
    x = Interactions.from_rows(np.zeros(1_000_000, int), np.arange(1_000_000), 3, 1_000_000)
    layout = make_layout(x.by_user.counts, Chunking(4096))
    _, long = pack(x.by_user, layout, np.arange(1_000_000, dtype=np.int32))
    assert long.length.sum() == 1_000_000
    assert long.index[0].size <= 4096 + 32


def test_values_are_not_stored_if_all_are_one():
    x = Interactions.from_rows([0, 1], [0, 1], 2, 2)
    short, long = pack(
        x.by_user, make_layout(x.by_user.counts, Chunking(8)), np.arange(2, dtype=np.int32)
    )
    assert short.value is None
    assert long.value is None


def test_chunks_hold_the_segments_of_their_rows():
    """The example of `Chunks`: rows of 6, 3 and 5 entries in segments of 4."""
    counts = np.array([6, 3, 5])
    columns = np.arange(14, dtype=np.int32)
    rows = SparseRows(np.array([0, 6, 9, 14]), columns, np.ones(14, np.float32))
    layout = Layout(
        counts=counts,
        position=np.arange(3, dtype=np.int32),
        chunk=np.zeros(3, np.int32),
        slot=np.arange(3, dtype=np.int32),
        devices=1,
        chunks=1,
        chunk_rows=3,
        long_rows=0,
        segments=5,
        segment=4,
    )
    short, long = pack(rows, layout, columns)
    np.testing.assert_array_equal(short.row, [[0, 0, 1, 2, 2]])
    np.testing.assert_array_equal(short.length, [[4, 2, 3, 4, 1]])
    np.testing.assert_array_equal(short.index[0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(short.index[0, 1, :2], [4, 5])
    np.testing.assert_array_equal(short.index[0, 4, :1], [13])
    assert len(long.row) == 0


def test_places_are_counted_in_int32():
    check_places(2**31 - 1)
    with pytest.raises(DataError, match="at most 2,147,483,647 users or items"):
        check_places(2**31)


def test_more_than_two_to_the_31_entries_have_places():
    """Rows of 2^29 entries in a chunk of each device, and one row that goes on on four devices."""
    layout = Layout(
        counts=np.array([2**29] * 8 + [2**33]),
        position=np.arange(9, dtype=np.int32),
        chunk=np.arange(9, dtype=np.int32),
        slot=np.zeros(9, np.int32),
        devices=8,
        chunks=8,
        chunk_rows=1,
        long_rows=8,
        segments=2**29,
        segment=1,
    )
    found = pieces_of(layout, range(8))
    np.testing.assert_array_equal(found.place, 2**29 * np.arange(9))
    assert found.chunks == 8 + 2**33 // 2**29
    last = pieces_of(layout, [6, 7])
    np.testing.assert_array_equal(last.row, [6, 7, 8, 8])
    np.testing.assert_array_equal(last.skip, [0, 0, 6 * 2**30, 7 * 2**30])
    np.testing.assert_array_equal(last.need, [2**29, 2**29, 2**30, 2**30])
    np.testing.assert_array_equal(last.place, [0, 2**29, 2**30, 2**31])


def test_a_layout_of_more_than_two_to_the_31_entries_holds_all():
    counts = np.array([2**32, 5, 2**31, 3])
    layout = make_layout(counts, Chunking(2**20), devices=4)
    own = [pieces_of(layout, [device]) for device in range(4)]
    need = sum(np.bincount(x.row, x.need, 4) for x in own)
    np.testing.assert_array_equal(need, -(-counts // layout.segment))


def test_dear_segments_are_long():
    counts = np.full(1000, 145)
    segments = [make_layout(counts, Chunking(2**20, None, x)).segment for x in (4, 128)]
    assert segments[0] <= 32 < segments[1]


def test_long_rows_come_first_on_each_device():
    layout = make_layout(np.array([50, 1, 60, 1]), Chunking(20), devices=2)
    assert layout.long_rows == 2
    per_device = layout.table_rows // 2
    np.testing.assert_array_equal(layout.position[[0, 2]], [0, per_device])
    np.testing.assert_array_equal(layout.chunk == layout.chunks, [True, False, True, False])


@pytest.mark.parametrize(
    ("scale", "want"),
    [
        ("linear", [0, 1, 5, -2]),
        ("log", [0, np.log(2), np.log(6), -np.log(3)]),
        ("none", None),
    ],
)
def test_what_values_count_for(scale, want):
    found = scaled_values(np.array([0, 1, 5, -2]), scale)
    if want is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, want, rtol=1e-6)

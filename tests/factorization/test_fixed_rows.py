"""The rows of a split fixed side: lists of what chunks need, and what they get."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cadc_jax.factorization import als, fixed_rows
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.interactions import Chunking, Interactions, make_layout, pack
from tests.factorization import reference

AXES = ("data", "model")


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]).reshape(devices, 1), AXES)


def packed(devices, chunk=32):
    """Chunks of users in the order of the matrix, with places in the table of items, its layout."""
    matrix = Interactions.from_rows(*reference.sparse_data()[:2], reference.U, reference.I)
    users, items = (
        make_layout(side.counts, Chunking(chunk), devices)
        for side in (matrix.by_user, matrix.by_item)
    )
    return pack(matrix.by_user, users, items.position), items


@pytest.mark.parametrize(
    ("devices", "width", "dtype"), [(1, 4, "float32"), (2, 5, "bfloat16"), (8, 5, "float32")]
)
def test_every_entry_gets_the_row_of_its_column(devices, width, dtype):
    mesh, (parts, items) = mesh_of(devices), packed(devices)
    table = jax.random.normal(jax.random.key(0), (items.table_rows, width)).astype(dtype)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES), check_vma=False
    )
    def fetch_all(table, chunks):
        return jax.lax.map(lambda chunk: fixed_rows.fetch(table, chunk, AXES), chunks)

    assert len(parts[0].index) and len(parts[1].index)  # there are short and long rows
    for given in parts:
        got = fetch_all(table, fixed_rows.place(given, items, mesh))
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.float32(table)[given.index])


@pytest.mark.parametrize("devices", [2, 8])
def test_a_chunk_asks_a_device_for_each_row_once(devices):
    parts, items = packed(devices)
    own = items.table_rows // devices
    for given in parts:
        placed = fixed_rows.place(given, items, mesh_of(devices))
        # [devices, C, devices, P] rows by owner and asker -> by asker and owner
        asked = np.asarray(placed.asked)
        room = asked.shape[-1]
        by_owner = asked.reshape(devices, -1, devices, room)
        most = 0
        for asker, of_asker in enumerate(np.split(given.index, devices)):
            for nth, index in enumerate(of_asker):
                for owner in range(devices):
                    needed = np.unique(index[index // own == owner]) % own
                    most = max(most, len(needed))
                    listed = by_owner[owner, nth, asker]
                    np.testing.assert_array_equal(listed[: len(needed)], needed)
                    assert not listed[len(needed) :].any()
        assert room == fixed_rows.room_for(most) == -(-most // 8) * 8


def test_sides_without_long_rows_ask_for_nothing_more():
    parts, items = packed(4, chunk=4096)
    assert fixed_rows.place(parts[1], items, mesh_of(4)).asked.shape[0] == 0


def test_the_rows_that_come_hardly_depend_on_the_number_of_devices():
    """With as many entries on each device, of the same 8,000 users and 4,000 items."""

    def rows(devices):
        """That a device gets in a half-step, its own ones included."""
        user, item = np.random.default_rng(0).integers(0, (8_000, 4_000), (20_000 * devices, 2)).T
        matrix = Interactions.from_rows(user, item, 8_000, 4_000)
        config = ALSConfig(factors=16, chunk=10_000, fixed_side="sharded")
        users, _ = als.prepare(matrix, config, mesh_of(devices))
        return users.data.short.asked.size / devices

    two, eight = map(rows, (2, 8))
    assert 3_000 < two < 20_000  # equal columns of a chunk are asked for once
    assert eight == pytest.approx(two, rel=0.15)

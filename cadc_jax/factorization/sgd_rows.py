"""Training rows of logistic SGD on the devices of a mesh.

A row is on the device that owns its user: users are dealt out as the rows of `tables.dealt` are.
The known items of a user, which are no negatives, are there too. A process makes the parts of its
own devices alone.

Batches are those of one device, whatever the mesh is: an epoch's order of rows is drawn for all of
them, and each device takes the rows of a batch that it has. So a batch has other numbers of rows on
each device. All get as many slots as the largest number in the epoch.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh

from cadc_jax import sharding
from cadc_jax.errors import DataError
from cadc_jax.tables import rounds, trips
from cadc_jax.tables.rounds import Capacity

BLOCK_ROWS = 1 << 24  # labelled rows that are on the devices at a time
_STEPS_AT_A_TIME = 256  # of an order, for which slots are found
_SIZES = 8  # slots a device are a multiple of so many parts of its mean: few programs are compiled


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """Training rows on the host. The arrays may be memory-mapped.

    Attributes:
      user: [N] int user ids in [0, num_users).
      item: [N] int item ids in [0, num_items).
      num_users: U.
      num_items: I.
      label: [N] in {0, 1}; None if all rows are positive and negatives are to be drawn.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)


@flax.struct.dataclass
class Block:
    """Training rows of d devices, R each, and if they have no labels the known items of each user.

    A device has m users.

    Attributes:
      user: [d * R] int32 the user's row in the device's part of the table.
      item: [d * R] int32.
      label: [d * R] f32; None if all are positive.
      number: [d * R] int32 which row of the block it is; None if there are labels, or if one device
        has all rows in order.
      offsets: [d * (m + 1)] int32: a user's items are items[offsets[u]:offsets[u + 1]].
      items: [d * R] int32, ascending within a user.
    """

    user: jax.Array
    item: jax.Array
    label: jax.Array | None = None
    number: jax.Array | None = None
    offsets: jax.Array | None = None
    items: jax.Array | None = None


@flax.struct.dataclass
class Penalties:
    """Weights of the squared norms of rows of the tables, each time that they are used.

    Attributes:
      user: [d * m] f32, in the order of places.
      item: [I] f32, on each device.
    """

    user: jax.Array
    item: jax.Array


class Blocks:
    """The training rows as blocks of one size. All blocks share a program.

    Rows without labels are a single block: negatives need the known items of all users.

    Attributes:
      size: rows of a block; the last block is padded.
      starts: first row of each block.
      clicks: share of clicks among labelled rows; else 1.
    """

    def __init__(self, rows: TrainingRows, batch_rows: int, mesh: Mesh):
        """Checks the rows.

        Raises:
          DataError: if an id is out of range, or a label is neither 0 nor 1.
        """
        self.size = len(rows) if rows.label is None else min(len(rows), BLOCK_ROWS)
        self.starts = range(0, len(rows), self.size)
        self._rows, self._mesh = rows, mesh
        self._batch = min(batch_rows, self.size)
        self._loaded: tuple[int, _Dealing, Block] | None = None
        self._users, self._items = np.zeros(rows.num_users), np.zeros(rows.num_items)  # their rows
        self._room, self.clicks = self._check()

    def _check(self) -> tuple[int, float]:
        """Checks all rows; returns the most that a device has of a block, and the clicks' share."""
        rows, room, clicks = self._rows, 0, 0.0
        for first in self.starts:
            part = slice(first, first + self.size)
            for name, ids, end in (
                ("user", rows.user[part], rows.num_users),
                ("item", rows.item[part], rows.num_items),
            ):
                if ids.min() < 0 or ids.max() >= end:
                    raise DataError(
                        f"{name} ids must be in [0, {end}); they go from {ids.min()} to {ids.max()}"
                    )
            if rows.label is not None:
                label = rows.label[part]
                if not ((label == 0) | (label == 1)).all():
                    raise DataError("labels must be 0 or 1: a rating or a count is not a click")
                clicks += float(np.sum(label, dtype=np.float64))
            if self._mesh.size > 1:
                room = max(room, np.bincount(rows.user[part] % self._mesh.size).max())
            self._users += np.bincount(rows.user[part], minlength=rows.num_users)
            self._items += np.bincount(rows.item[part], minlength=rows.num_items)
        return int(room) or self.size, 1.0 if rows.label is None else clicks / len(rows)

    def capacity(self, negatives: int) -> Capacity:
        """`item_capacity` for the items of the rows."""
        rows, devices = self._rows, self._mesh.size
        shares = self._items / len(rows)
        ragged = trips.can_be_ragged(self._mesh)
        return item_capacity(
            *(self._batch, negatives, rows.num_items, devices, shares), ragged=ragged
        )

    def penalties(self, regularization: float, exponent: float, negatives: int) -> Penalties:
        """The penalties of all users and items, on the devices.

        The n uses of a row in an epoch cost `regularization` n (n / mean)^(exponent - 1). The mean
        is the geometric one of those of users and of items.

        Args:
          regularization: of a user or an item of the mean number of uses.
          exponent: see `SGDConfig.frequency_exponent`.
          negatives: drawn for each row; each is a use of its item.
        """
        rows, devices = self._rows, self._mesh.size
        uses = (
            self._users * (1 + negatives),
            self._items + len(rows) * negatives / rows.num_items,
        )
        mean = math.prod(x.sum() / max(1, np.count_nonzero(x)) for x in uses) ** 0.5
        user, item = (
            (regularization * (np.maximum(x, 1) / mean) ** (exponent - 1)).astype(np.float32)
            for x in uses
        )
        size = -(-rows.num_users // devices)

        def of_device(nth: int) -> np.ndarray:
            own = user[nth::devices]
            return np.pad(own, (0, size - len(own)))

        everywhere = sharding.named(self._mesh, sharding.REPLICATED)
        return Penalties(self._by_device(size, of_device), sharding.put(item, everywhere))

    def order(self, first: int, shuffle: np.random.Generator) -> tuple[jax.Array, int]:
        """A random order of the block from row `first` on, and its number of rows.

        It is drawn on the host: the sort behind jax.random.permutation takes as long as an epoch on
        a CPU.

        Returns:
          [steps, d * slots] int32 numbers of rows on a device, split over the devices; -1 for none.
        """
        count = min(self.size, len(self._rows) - first)
        order = shuffle.permutation(count).astype(np.int32)
        padding = self.size - count + -self.size % self._batch
        order = np.pad(order, (0, padding), constant_values=-1).reshape(-1, self._batch)
        if self._mesh.size == 1:
            slots = order[:, None]
        else:
            dealing, _ = self._load(first)
            slots = dealing.slots(order, self._batch)
        steps, _, width = slots.shape

        def part(index: Any) -> np.ndarray:
            return slots[:, (index[1].start or 0) // width]

        shape = steps, self._mesh.size * width
        where = sharding.named(self._mesh, sharding.BATCHES)
        return jax.make_array_from_callback(shape, where, part), count

    def on_devices(self, first: int) -> Block:
        """The block from row `first` on. The last block stays on the devices."""
        return self._load(first)[1]

    def _load(self, first: int) -> tuple["_Dealing", Block]:
        if self._loaded is None or self._loaded[0] != first:
            self._loaded = None  # its memory is the new one's
            user = np.asarray(self._rows.user[first : first + self.size])
            dealing = _Dealing.of(user, self._mesh.size)
            self._loaded = first, dealing, self._block(first, user, dealing)
        return self._loaded[1:]

    def _block(self, first: int, user: np.ndarray, dealing: "_Dealing") -> Block:
        rows, devices, room = self._rows, self._mesh.size, self._room
        users = -(-rows.num_users // devices)

        def column(x: np.ndarray, kind: Any = np.int32) -> jax.Array:
            def part(nth: int) -> np.ndarray:
                own = dealing.own(x, nth)
                return np.pad(own, (0, room - len(own))).astype(kind)

            return self._by_device(room, part)

        item = rows.item[first : first + self.size]
        block = Block(column(user // devices), column(item))
        if rows.label is not None:
            label = rows.label[first : first + self.size]
            return dataclasses.replace(block, label=column(label, np.float32))
        known = {
            nth: _known(dealing.own(user, nth) // devices, dealing.own(item, nth), users, rows)
            for nth, device in enumerate(self._mesh.devices.flat)
            if device.process_index == jax.process_index()
        }

        def items(nth: int) -> np.ndarray:
            found = known[nth].indices
            return np.pad(found, (0, room - len(found))).astype(np.int32)

        return dataclasses.replace(
            block,
            number=column(np.arange(len(user))) if devices > 1 else None,
            offsets=self._by_device(users + 1, lambda nth: known[nth].indptr.astype(np.int32)),
            items=self._by_device(room, items),
        )

    def _by_device(self, length: int, make: Callable[[int], np.ndarray]) -> jax.Array:
        """An array [d * length] of what `make` gives for each device."""
        where = sharding.named(self._mesh, sharding.TABLE)

        def part(index: Any) -> np.ndarray:
            return make((index[0].start or 0) // length)

        return jax.make_array_from_callback((self._mesh.size * length,), where, part)


def item_capacity(
    batch: int,
    negatives: int,
    num_items: int,
    devices: int,
    shares: np.ndarray | float,
    *,
    ragged: bool = False,
) -> Capacity:
    """Room for the item rows of a round of an exchange (see `tables.rounds`).

    It follows from the distinct items that are expected among a device's rows of a batch and their
    negatives. More than these are exchanged as well, but take longer.

    Args:
      batch: rows of a batch on all devices.
      negatives: drawn for each row.
      num_items: I.
      devices: d; one has all rows and needs no room.
      shares: [I] of the rows that have each item, or the share of each if all have the same.
      ragged: whether the exchange is.
    """
    if devices == 1:
        return rounds.NO_ROOM
    own = batch / devices
    times = np.broadcast_to(own * shares + own * negatives / num_items, num_items)
    distinct = float(-np.expm1(-times).sum())  # Poisson: an item is there once or more
    return rounds.capacity(distinct, devices, num_items, ragged=ragged)


def _known(
    user: np.ndarray, item: np.ndarray, num_users: int, rows: TrainingRows
) -> scipy.sparse.csr_matrix:
    """A matrix whose entries are the distinct pairs, sorted by user and item."""
    ones = np.ones(len(user), np.bool_)
    pairs = scipy.sparse.coo_matrix((ones, (user, item)), (num_users, rows.num_items)).tocsr()
    pairs.sort_indices()
    return pairs


@dataclasses.dataclass(frozen=True)
class _Dealing:
    """The owners of the rows of a block.

    Attributes:
      owner: [N] the owner of each row.
      order: [N] rows by owner.
      starts: [d + 1] where each owner's rows begin in this order.
    """

    owner: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, user: np.ndarray, devices: int) -> "_Dealing":
        owner = (user % devices).astype(np.uint16)
        order = np.argsort(owner, kind="stable") if devices > 1 else np.arange(len(user))
        counts = np.bincount(owner, minlength=devices)
        return cls(owner, order, np.append(0, np.cumsum(counts)))

    def own(self, x: np.ndarray, nth: int) -> np.ndarray:
        """What a device has of x [N]."""
        if len(self.starts) == 2:
            return np.asarray(x)
        return np.asarray(x[self.order[self.starts[nth] : self.starts[nth + 1]]])

    def slots(self, order: np.ndarray, batch: int) -> np.ndarray:
        """An order of rows [steps, B], -1 for none -> [steps, d, slots] of numbers on a device."""
        devices = len(self.starts) - 1
        place = np.empty(len(self.owner), np.int32)
        place[self.order] = np.arange(len(place)) - np.repeat(
            self.starts[:-1], np.diff(self.starts)
        )
        owner = np.append(self.owner, np.uint16(devices))  # that of -1
        counts = np.stack([np.bincount(owner[x], minlength=devices + 1) for x in order])
        unit = max(1, round(batch / devices / _SIZES))
        width = -(-counts[:, :devices].max() // unit) * unit
        slots = np.full((len(order), devices + 1, min(width, batch)), -1, np.int32)
        before = np.cumsum(counts, axis=1) - counts
        for start in range(0, len(order), _STEPS_AT_A_TIME):
            part = slice(start, start + _STEPS_AT_A_TIME)
            own = owner[order[part]]
            by_owner = np.argsort(own, axis=1, kind="stable")
            own = np.take_along_axis(own, by_owner, axis=1)
            number = np.take_along_axis(order[part], by_owner, axis=1)
            nth = np.arange(batch) - np.take_along_axis(before[part], own.astype(np.intp), axis=1)
            real = number >= 0
            step = np.broadcast_to(np.arange(len(own))[:, None], own.shape)[real]
            slots[part][step, own[real], nth[real]] = place[number[real]]
        return slots[:, :devices]


def negatives(key: jax.Array, numbers: jax.Array, count: int, num_items: int) -> jax.Array:
    """Items drawn for rows [n] of a block: [n, count] int32.

    They depend on the row's number alone, and not on the batch or the device that it is on. 2^32 is
    no multiple of `num_items`, so some items are likelier than others by `num_items` / 2^32.
    """

    def bits(number: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, number), (count,), jnp.uint32)

    drawn = jax.vmap(bits)(numbers) % jnp.uint32(num_items)
    return drawn.astype(jnp.int32)


def contains(rows: Block, user: jax.Array, item: jax.Array) -> jax.Array:
    """Whether each item is a known item of its user, by binary search.

    Users [B, 1] and items [B, n] of a device's own part -> [B, n] bool.
    """
    offsets, items = rows.offsets, rows.items
    assert offsets is not None and items is not None  # set if there are no labels
    low = jnp.broadcast_to(offsets[user], item.shape)
    end = jnp.broadcast_to(offsets[user + 1], item.shape)
    high = end

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = (low < high) & (items[middle] < item)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, jnp.maximum(middle, low))

    halvings = max(1, len(items)).bit_length()
    low, _ = jax.lax.fori_loop(0, halvings, halve, (low, high))
    return (low < end) & (items[jnp.minimum(low, len(items) - 1)] == item)

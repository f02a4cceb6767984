"""The negatives of `data.negatives.draw_for_training` on devices; equal bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cadc_jax.data.negatives import ATTEMPTS, NegativeSampling, PairSet
from cadc_jax.resident import likely, uint64
from cadc_jax.resident.likely import LikelyTables
from cadc_jax.resident.shuffle import mix64
from cadc_jax.resident.uint64 import UInt64

_BLOCK_PAIRS = 1 << 22  # scored at a time when all likely pairs are marked
_MARK_EPOCHS = 128  # pairs are marked if they are fewer than the draws of so many epochs
_MARK_PAIRS = 1 << 31  # the most pairs that are marked: 256 MB of bits
_TOGETHER = 8  # one in so many draws is repeated at a time
_INNER = 128  # draws that are counted together: the width of a matrix unit


_Draws = tuple[jax.Array, jax.Array, jax.Array]  # items, whether each is wrong, attempts


@struct.dataclass
class ResidentNegatives:
    """How to draw negatives on the device.

    Attributes:
      filter: [M] uint32, the bits of a `PairSet`'s filter, filled up with zeros.
      first: [U + 1] int32, where the items of each user begin in `items`; None if the filter alone
        decides.
      items: [P] int32 items of known pairs, by user, ascending; None as `first`.
      marks: [U, I / 32] uint32, a bit for each likely pair; None if they are not marked.
      likely: scores them where they are not marked; None if no item is likely, too.
      count: G, negatives of each positive.
      num_items: I.
      bits: of the filter.
      longest: known items of the user who has the most.
    """

    filter: jax.Array
    first: jax.Array | None
    items: jax.Array | None
    marks: jax.Array | None
    likely: LikelyTables | None
    count: int = struct.field(pytree_node=False)
    num_items: int = struct.field(pytree_node=False)
    bits: int = struct.field(pytree_node=False)
    longest: int = struct.field(pytree_node=False)


def of(sampler: NegativeSampling, num_users: int, num_rows: int) -> ResidentNegatives:
    """`sampler` for `num_rows` rows of `num_users` users, on the host or the first device."""
    known = PairSet.of(sampler.known)
    bits = 8 * len(known.filter)
    marked = np.pad(known.filter, (0, -len(known.filter) % 4)).view("<u4")
    first, items, longest = None, None, 0
    largest = max(sampler.known[-1:], default=0)
    if largest >= bits or num_users * sampler.num_items > 1 << 32:
        user, item = np.divmod(sampler.known, sampler.num_items)
        begin = np.searchsorted(user, np.arange(num_users + 1))
        first, items = jnp.asarray(begin, jnp.int32), jnp.asarray(item, jnp.int32)
        longest = int(np.diff(begin).max())
    marks, tables = None, None
    if sampler.likely is not None and sampler.count:
        tables = likely.of(sampler.likely)
        pairs, draws = num_users * sampler.num_items, num_rows * sampler.count
        if pairs <= min(_MARK_PAIRS, _MARK_EPOCHS * draws):
            marks, tables = _marks(tables), None
    return ResidentNegatives(
        filter=jnp.asarray(marked),
        first=first,
        items=items,
        marks=marks,
        likely=tables,
        count=sampler.count,
        num_items=sampler.num_items,
        bits=bits,
        longest=longest,
    )


def _marks(tables: LikelyTables) -> jax.Array:
    """[U, ceil(I / 32)] uint32: the bits of all likely pairs."""
    users, items = len(tables.user), len(tables.item)
    block = max(1, min(users, _BLOCK_PAIRS // items))
    return jnp.concatenate(
        [
            _marks_of(tables, jnp.arange(start, min(start + block, users)))
            for start in range(0, users, block)
        ]
    )


@jax.jit
def _marks_of(tables: LikelyTables, user: jax.Array) -> jax.Array:
    found = likely.pairs(tables, user)
    found = jnp.pad(found, ((0, 0), (0, -found.shape[1] % 32))).reshape(len(user), -1, 32)
    bits = jnp.where(found, jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32), 0)
    return jnp.sum(bits, axis=-1, dtype=jnp.uint32)


def draw(negatives: ResidentNegatives, user: jax.Array, draws: UInt64, start: UInt64) -> jax.Array:
    """Negatives of each row; see `data.negatives.draw_for_training`.

    Args:
      negatives: how to draw.
      user: [n] int32.
      draws: [n], a number for each row.
      start: `sampling.start` of the seed.

    Returns:
      [n, G] int32.
    """
    count = negatives.count
    numbers = UInt64(draws.high[:, None], draws.low[:, None])
    numbers = uint64.multiply(numbers, uint64.of(count))
    numbers = uint64.add(numbers, uint64.of_word(jnp.arange(count, dtype=jnp.uint32)))
    numbers = uint64.multiply(numbers, uint64.of(ATTEMPTS))
    numbers = UInt64(*(x.reshape(-1) for x in numbers))
    users = jnp.repeat(user, count)

    def items_of(numbers: UInt64) -> jax.Array:
        drawn = uint64.remainder(mix64(numbers, start), negatives.num_items - 1)
        return 1 + drawn.astype(jnp.int32)

    items = items_of(numbers)
    size = len(items)
    room = -(-size // _TOGETHER)

    def repeat(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Draws the first of the wrong ones again, until they are right or stay."""
        items, wrong = carry
        places = _places(wrong, room)  # past the end: none
        user, drawn, high, low = (
            x.at[places].get(mode="clip") for x in (users, items, numbers.high, numbers.low)
        )

        def again(carry: _Draws) -> _Draws:
            drawn, bad, attempt = carry
            number = uint64.add(UInt64(high, low), uint64.of_word(attempt))
            drawn = jnp.where(bad, items_of(number), drawn)
            return drawn, bad & _own(negatives, user, drawn), attempt + 1

        drawn, _, _ = jax.lax.while_loop(
            lambda carry: jnp.any(carry[1]) & (carry[2] < ATTEMPTS),
            again,
            (drawn, places < size, jnp.uint32(1)),
        )
        items = items.at[places].set(drawn, mode="drop")
        return items, wrong.at[places].set(False, mode="drop")

    carry = items, _own(negatives, users, items)
    items, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), repeat, carry)
    return items.reshape(len(user), count)


def _places(chosen: jax.Array, room: int) -> jax.Array:
    """[room] int32: the first places of [n] bool that are True; n where there are no more.

    Counts are summed in two levels, the inner one as a product of matrices: a cumulative sum takes
    many passes.
    """
    size = len(chosen)
    inner = jnp.pad(chosen, (0, -size % _INNER)).reshape(-1, _INNER)
    before = inner.astype(jnp.float32) @ jnp.triu(jnp.ones((_INNER, _INNER)), 1)
    totals = jnp.sum(inner, axis=1, dtype=jnp.int32)
    number = before.astype(jnp.int32) + (jnp.cumsum(totals) - totals)[:, None]
    number = jnp.where(inner, number, room).reshape(-1)[:size]
    places = jnp.arange(size, dtype=jnp.int32)
    return jnp.full(room, size, jnp.int32).at[number].set(places, mode="drop")


def _own(negatives: ResidentNegatives, user: jax.Array, item: jax.Array) -> jax.Array:
    """[n] bool: whether each item [n] is known or likely to be the user's."""
    found = _known(negatives, user, item)
    if negatives.marks is not None:
        words = negatives.marks[user, item >> 5]
        found |= (words >> (item & 31).astype(jnp.uint32) & 1).astype(bool)
    if negatives.likely is not None:
        tables = negatives.likely
        products = tables.user[user].astype(jnp.int32) * tables.item[item].astype(jnp.int32)
        scores = jnp.sum(products, axis=1).astype(jnp.float32) * tables.scale[item]
        found |= scores > tables.bound[user]
    return found


def _known(negatives: ResidentNegatives, user: jax.Array, item: jax.Array) -> jax.Array:
    """[n] bool: whether each pair is in the set."""
    # The lower 32 bits of the key: all of it, if the filter alone decides.
    key = user.astype(jnp.uint32) * np.uint32(negatives.num_items) + item.astype(jnp.uint32)
    place = key & np.uint32(negatives.bits - 1)
    found = (negatives.filter[place >> 5] >> (place & 31) & 1).astype(bool)
    if negatives.first is None or negatives.items is None:
        return found & (key == place)
    low, end = negatives.first[user], negatives.first[user + 1]
    high = end
    for _ in range(negatives.longest.bit_length()):  # the first item that is not smaller
        middle = (low + high) // 2
        smaller = (middle < high) & (negatives.items.at[middle].get(mode="clip") < item)
        low, high = jnp.where(smaller, middle + 1, low), jnp.where(smaller, high, middle)
    there = negatives.items.at[low].get(mode="clip") == item
    return found & (low < end) & there

"""The cost of a fit of the linear autoencoder."""

import dataclasses

from cadc_jax.cost.arithmetic import GPU, all_reduce
from cadc_jax.cost.model import Cost, Sizes
from cadc_jax.cost.sides import Side, both_sides, host_memory
from cadc_jax.factorization import gram
from cadc_jax.factorization.autoencoder import EXTRA, AutoencoderConfig
from cadc_jax.tables.packed import stored_width

# About how many tables of items are read or written outside the sparse products, by as many
# kernels: in a round of the start, in a solve of the items, and in a step for the encoder.
_ROUND, _SOLVE, _STEP = 10, 20, 30


def autoencoder(
    sizes: Sizes, config: AutoencoderConfig, devices: int = 1, platform: str = GPU, hosts: int = 1
) -> Cost:
    """The cost of a fit: the start, the passes, and the factors of users.

    Args:
      sizes: sizes of the data.
      config: settings of the factorisation.
      devices: number of devices.
      platform: what they are: 'cpu', 'gpu' or 'tpu'.
      hosts: number of hosts that have them.
    """
    fit = _fit(sizes, config, devices, platform)
    host = 2 * config.start_rounds, 2 * config.passes - 1
    return Cost(
        name=f"factorize, autoencoder: {config.factors} factors, {config.passes} passes",
        memory=max(fit.memory.values(), key=lambda phase: sum(phase.values())),
        unit="fit",
        flops=fit.flops,
        precision="highest",
        traffic=fit.traffic,
        received=fit.received,
        launches=fit.launches,
        units=1,
        whole="fit",
        notes=(
            f"not counted: the host decomposes {host[0]} matrices of {fit.wide} x {fit.wide} and "
            f"{host[1]} of {config.factors} x {config.factors}",
        ),
        host=host_memory(sizes, config.factors, hosts),
    )


def autoencoder_phases(
    sizes: Sizes, config: AutoencoderConfig, devices: int = 1, platform: str = GPU
) -> dict[str, dict[str, float]]:
    """Phase of a fit -> purpose -> bytes on a device. `autoencoder` reports the largest phase."""
    return _fit(sizes, config, devices, platform).memory


def _fit(sizes: Sizes, config: AutoencoderConfig, devices: int, platform: str) -> "_Fit":
    chunking = gram.chunking(config.factors, platform)
    return _Fit(*both_sides(sizes, chunking, devices), config, devices, platform)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A fit on one device. D is the rank, K the width of the start."""

    users: Side
    items: Side
    config: AutoencoderConfig
    devices: int
    platform: str

    @property
    def wide(self) -> int:
        """K."""
        return self.config.factors + EXTRA

    @property
    def improvements(self) -> int:
        """Passes that improve the encoder."""
        return self.config.passes - 1

    @property
    def columns(self) -> int:
        """Columns of all tables that are multiplied with G."""
        return self._columns(self.wide, self.config.factors)

    def _columns(self, wide: int, rank: int) -> int:
        return self.config.start_rounds * wide + (self.products - self.config.start_rounds) * rank

    @property
    def products(self) -> int:
        """Products of a table with G."""
        return self.config.start_rounds + self.improvements * (1 + 2 * self.config.cg_steps)

    @property
    def table_moves(self) -> tuple[int, int]:
        """Tables of items of width K, and of width D, that are read or written elsewhere."""
        config = self.config
        improved = _STEP * self.improvements * (1 + config.cg_steps)
        return _ROUND * config.start_rounds, _SOLVE * config.passes + improved

    @property
    def launches(self) -> float:
        """Kernels. A chunk is gathered, multiplied and summed by row, in a turn of a loop."""
        sides = (self.users, self.items)
        chunks = sum(side.chunks + side.long_chunks for side in sides) / self.devices
        return 4 * chunks * self.products + sum(self.table_moves)

    @property
    def item_rows(self) -> float:
        """Rows of the device in a table of items."""
        return self.items.table_rows / self.devices

    @property
    def memory(self) -> dict[str, dict[str, float]]:
        """Phase -> purpose -> bytes."""
        # Start: V; its image before, the new one, and both with N. Passes: P, G P and Q; a new P
        # and G P, and the tables of conjugate gradients.
        phases = {"start": self._phase(self.wide, 1, 4)}
        if self.improvements:
            phases["passes"] = self._phase(self.config.factors, 3, 13)
        return phases

    def _phase(self, width: int, held: int, working: int) -> dict[str, float]:
        width = stored_width(width, self.platform)
        users = self.users.table_rows / self.devices * 4 * width
        chunk = 2 * max(self.users.places, self.items.places) * 4 * width
        entries = self.users.entry_bytes + self.items.entry_bytes
        copy = max(self.users.table_rows, self.items.table_rows) if self.devices > 1 else 0
        return {
            "tables of items": held * self.item_rows * 4 * width,
            "weights of users": self.users.table_rows / self.devices * 4,
            "four numbers of each item": 4 * self.item_rows * 4,
            "entries, by user and by item": entries / self.devices,
            "working tables of items": working * self.item_rows * 4 * width,
            "users of a product, and a chunk": users + max(users, chunk),
            "copy of a side": copy * 4 * width,
        }

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        both = self.users.entries + self.items.entries
        sparse = both * self.columns + self.users.entries * self.config.factors
        rounds, rank = self.config.start_rounds, self.config.factors
        # A round: V'V, V'Y and, but for the last, Y Z. After all: V Z and Y Z.
        wide = (3 * rounds - 1) * self.wide**2 + 2 * self.wide * rank
        # A solve: M and three products. An improvement: T twice, and two products at its start
        # and in each step.
        solved = 4 * self.config.passes + self.improvements * (4 + 2 * self.config.cg_steps)
        return 2 * sparse / self.devices + 2 * self.item_rows * (wide + solved * rank**2)

    @property
    def traffic(self) -> float:
        """Bytes read from and written to the device's memory."""
        entries = self.users.entries + self.items.entries
        wide, rank = (stored_width(x, self.platform) for x in (self.wide, self.config.factors))
        columns = self._columns(wide, rank)
        rows = 3 * self.users.table_rows + self.items.table_rows  # written, weighted and read
        if self.devices > 1:
            rows += self.devices * (self.users.table_rows + self.items.table_rows)
        # An entry is read once in each product. Its row is read, written and read again.
        sparse = entries * (3 * 4 * columns + 8 * self.products) + rows * 4 * columns
        sparse += self.users.entries * (3 * 4 * rank + 8) + self.users.table_rows * 4 * rank
        tables = self.table_moves[0] * wide + self.table_moves[1] * rank
        return sparse / self.devices + self.item_rows * 4 * tables

    @property
    def received(self) -> dict[str, float]:
        """Purpose -> bytes from other devices."""
        rank, share = self.config.factors, (self.devices - 1) / self.devices
        both = self.users.table_rows + self.items.table_rows
        long = self.users.long_rows + self.items.long_rows
        small = 2 * self.config.start_rounds * self.wide**2
        small += (self.config.passes + 2 * self.improvements) * rank**2
        whole = both * self.columns + self.items.table_rows * rank
        sums = long * self.columns + self.users.long_rows * rank
        return {
            "tables of both sides": 4 * share * whole,
            "small matrices": all_reduce(4 * small, self.devices),
            "rows of many entries": 4 * share * sums,
        }

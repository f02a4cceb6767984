"""Hardware, sizes of data, and costs as numbers and as text."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from cadc_jax.cost.arithmetic import CPU, GPU, TPU
from cadc_jax.data.table import Table
from cadc_jax.errors import check_choice
from cadc_jax.models import embeddings

# What a device reaches, from seconds of one H200 (jax 0.11.2; `tests/cost/test_measured.py`), and
# taken for all others. SHARE is the achieved share of the published bandwidth of the memory, as
# half-steps of ALS and steps with frozen tables show it; it stands for products and links too.
# LAUNCH is the latency of a kernel launch in seconds, as steps of few rows show it.
SHARE = 0.6
LAUNCH = 2.5e-6
MEASURED = "h200"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Published peaks of one device.

    Attributes:
      platform: 'cpu', 'gpu' or 'tpu'.
      memory: bytes.
      bandwidth: of its memory, bytes a second.
      link: bytes a second that it can receive from other devices over all its links.
      products: precision -> FLOPs a second: 'bfloat16', 'float32' (JAX's default precision) and
        'highest' (float32 throughout).
      platform: 'cpu', 'gpu' or 'tpu'.
    """

    memory: float
    bandwidth: float
    link: float
    products: Mapping[str, float]
    platform: str


def _tpu(memory: float, bandwidth: float, link: float, peak: float) -> Hardware:
    # By default a TPU multiplies float32 as bfloat16 in one pass; 'highest' takes six passes.
    products = {"bfloat16": peak, "float32": peak, "highest": peak / 6}
    return Hardware(memory, bandwidth, link, products, TPU)


def _hopper(memory: float, bandwidth: float) -> Hardware:
    products = {"bfloat16": 989e12, "float32": 494e12, "highest": 67e12}
    return Hardware(memory, bandwidth, 900e9 / 2, products, GPU)


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, 'key specifications'. They state links for
# both directions together, and half of that is received. H100 and H200 (SXM): NVIDIA's data sheets,
# dense; by default JAX multiplies float32 as TF32 there. 'cpu' is nominal: one core of a server and
# its share of the memory bandwidth.
_PRECISIONS = ("bfloat16", "float32", "highest")
HARDWARE = {
    "v5e": _tpu(16e9, 819e9, 400e9 / 2, 197e12),
    "v5p": _tpu(95e9, 2765e9, 1200e9 / 2, 459e12),
    "v6e": _tpu(32e9, 1638e9, 800e9 / 2, 918e12),
    "h100": _hopper(80e9, 3350e9),
    "h200": _hopper(141e9, 4800e9),
    "cpu": Hardware(math.inf, 10e9, 5e9, dict.fromkeys(_PRECISIONS, 50e9), CPU),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the data that the cost of a run depends on.

    Attributes:
      task: 'click' or 'ranking'.
      rows: training rows.
      num_users: U.
      num_items: I.
      feature_rows: V, rows of the stacked table of other categorical features.
      dense: numbers of dense features of (users, training rows, items).
      categorical: numbers of categorical features of (users, training rows, items).
      entries: entries of the interaction matrix.
      user_counts: [U] entries of each user; None if all have the same number.
      item_counts: [I] entries of each item; None if all have the same number.
    """

    task: str
    rows: int
    num_users: int
    num_items: int
    feature_rows: int = 0
    dense: tuple[int, int, int] = (0, 0, 0)
    categorical: tuple[int, int, int] = (0, 0, 0)
    entries: int = 0
    user_counts: np.ndarray | None = None
    item_counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one piece of work, on one device.

    Attributes:
      name: of the work.
      memory: purpose -> bytes.
      unit: the unit of work, such as 'step', that the next five figures are for.
      flops: FLOPs of matrix products.
      precision: precision of the matrix products, a key of `Hardware.products`.
      traffic: bytes read from and written to the device's memory.
      received: purpose -> bytes from other devices.
      launches: kernels that are started one after another.
      units: number of units in `whole`.
      whole: name of the whole work, such as 'epoch'; not shown if it is a single unit.
      notes: lines for the reader.
      host: purpose -> bytes in the memory of a host, where they are counted.
    """

    name: str
    memory: Mapping[str, float]
    unit: str
    flops: float
    precision: str
    traffic: float
    received: Mapping[str, float]
    launches: float
    units: int
    whole: str
    notes: tuple[str, ...] = ()
    host: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def seconds(self, hardware: Hardware) -> dict[str, float]:
        """Seconds of a unit: 'products', 'memory', 'receiving', 'launches', and their sum 'total'.

        The first three are at SHARE of their peaks, and nothing overlaps.
        """
        parts = {
            "products": self.flops / hardware.products[self.precision] / SHARE,
            "memory": self.traffic / hardware.bandwidth / SHARE,
            "receiving": sum(self.received.values()) / hardware.link / SHARE,
            "launches": self.launches * LAUNCH,
        }
        return parts | {"total": sum(parts.values())}


def hardware(name: str) -> Hardware:
    """The device with this name.

    Raises:
      ConfigError: if the name is not in HARDWARE.
    """
    check_choice("hardware", name, HARDWARE)
    return HARDWARE[name]


def sizes_of(table: Table) -> Sizes:
    """The sizes of the data of a prepared table."""
    schema = table.schema
    user, row, item = schema.user_content, schema.context, schema.item_content
    rows = len(table.splits["train"]["user"])
    if schema.task == "click":  # the matrix holds clicks; clicks of each user are not stored
        user_counts, item_counts = None, np.asarray(table.items["clicks"])
    else:
        user_counts, item_counts = np.diff(table.known["offsets"]), np.asarray(table.items["count"])
    return Sizes(
        task=schema.task,
        rows=rows,
        num_users=schema.num_users,
        num_items=schema.num_items,
        feature_rows=embeddings.num_feature_rows(table),
        dense=(len(user.dense), len(row.dense), len(item.dense)),
        categorical=(len(user.categorical), len(row.categorical), len(item.categorical)),
        entries=int(item_counts.sum()),
        user_counts=user_counts,
        item_counts=item_counts,
    )


def text(costs: Iterable[Cost], device: Hardware) -> str:
    """Costs as tables for people to read."""
    return "\n\n".join(_table(cost, device) for cost in costs)


def _table(cost: Cost, device: Hardware) -> str:
    total, time = sum(cost.memory.values()), cost.seconds(device)
    fits = "fits" if total <= device.memory else "DOES NOT FIT"
    room = "" if math.isinf(device.memory) else f" of {_bytes(device.memory)}: {fits}"
    lines = [cost.name, "  memory of a device"]
    lines += [f"    {what:36} {_bytes(size):>10}" for what, size in cost.memory.items() if size]
    lines.append(f"    {'in all':36} {_bytes(total):>10}{room}")
    if cost.host:
        lines.append("  memory of a host")
        lines += [f"    {what:36} {_bytes(size):>10}" for what, size in cost.host.items()]
        lines.append(f"    {'in all':36} {_bytes(sum(cost.host.values())):>10}")
    lines.append(f"  {'for each ' + cost.unit:47} {'about':>10}")
    received = sum(cost.received.values())
    for what, amount, part in (
        ("matrix products", f"{cost.flops / 1e9:,.2f} GFLOP", "products"),
        ("memory read and written", _bytes(cost.traffic), "memory"),
        ("received from other devices", _bytes(received), "receiving"),
        ("kernels started", f"{cost.launches:,.0f}", "launches"),
    ):
        lines.append(f"    {what:30} {amount:>14} {_time(time[part]):>10}")
        if part == "receiving":
            parts = cost.received.items()
            lines += [f"      {what:28} {_bytes(size):>14}" for what, size in parts if size]
    lines.append(f"  {cost.unit}: about {_time(time['total'])}")
    if cost.units > 1:
        lines[-1] += f"; {cost.whole} of {cost.units:,}: about {_time(time['total'] * cost.units)}"
    lines += [f"  {note}" for note in cost.notes]
    return "\n".join(lines)


def _bytes(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:,.2f} MB" if size >= 1e4 else f"{size:,.0f} B"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:,.2f} {unit}"
    return f"{seconds / 1e-6:,.2f} us"

"""What the device reaches by itself: bandwidths, and rates of matrix products."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator_lib.timing import row, timed
from cadc_jax import cost

WIDTH = 64  # floats of a row that is gathered
TURNS, PRODUCTS = 10, 10
PEAK = "peak in cadc plan"
KINDS = {  # beginnings of `Device.device_kind` -> keys of `cost.HARDWARE`; the first that fits
    "cpu": "cpu",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
}


class Limits:
    """Limits of the first device. Each is measured when it is first asked for.

    Attributes:
      hardware: its key of `cost.HARDWARE`; None if it has none.
    """

    def __init__(self, quick: bool):
        """`quick`: small arrays, which a CPU has in a cache."""
        kind = jax.devices()[0].device_kind
        self.hardware = next((key for name, key in KINDS.items() if kind.startswith(name)), None)
        self._floats = 1 << (20 if quick else 28)
        self._side = 256 if quick else 8192

    @functools.cached_property
    def copy(self) -> float:
        """Bytes a second, read and written, of a copy that adds 1."""
        x = jnp.zeros(self._floats)
        return 2 * x.nbytes / timed(lambda: _add_one(x), TURNS).least

    @functools.cached_property
    def triad(self) -> float:
        """Bytes a second, read and written, of a + 2 b."""
        a, b = jnp.zeros(self._floats), jnp.ones(self._floats)
        return 3 * a.nbytes / timed(lambda: _triad(a, b), TURNS).least

    @functools.cached_property
    def gather(self) -> float:
        """Bytes a second, read and written, of a gather of random rows of 64 floats."""
        rows = self._floats // WIDTH
        table = jnp.zeros((rows, WIDTH))
        ids = jax.random.randint(jax.random.key(0), (rows,), 0, rows)
        return 2 * table.nbytes / timed(lambda: _gather(table, ids), TURNS).least

    @functools.cache  # noqa: B019 (one object lives as long as the program)
    def products(self, precision: str) -> float:
        """FLOPs a second of square matrices; `precision` is a key of `Hardware.products`."""
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        exact = jax.lax.Precision.HIGHEST if precision == "highest" else None
        normal = jax.random.normal(jax.random.key(0), (self._side, self._side))
        x, w = normal.astype(dtype), (normal / self._side**0.5).astype(dtype)
        seconds = timed(lambda: _products(x, w, exact), TURNS).least
        return PRODUCTS * 2 * self._side**3 / seconds


@jax.jit
def _add_one(x: jax.Array) -> jax.Array:
    return x + 1


@jax.jit
def _triad(a: jax.Array, b: jax.Array) -> jax.Array:
    return a + 2 * b


@jax.jit
def _gather(table: jax.Array, ids: jax.Array) -> jax.Array:
    return table.at[ids].get(mode="promise_in_bounds")


@functools.partial(jax.jit, static_argnames="precision")
def _products(x: jax.Array, w: jax.Array, precision: Any) -> jax.Array:
    def once(_: int, y: jax.Array) -> jax.Array:
        return jnp.dot(y, w, precision=precision)

    return jax.lax.fori_loop(0, PRODUCTS, once, x)


def rows(limits: Limits) -> Iterator[dict]:
    """Each limit beside the published peak, if the device is one of `cost.HARDWARE`."""
    known = None if limits.hardware is None else cost.HARDWARE[limits.hardware]
    name = "none" if known is None else PEAK
    memory: tuple[tuple[str, Callable[[], float]], ...] = (
        ("copy", lambda: limits.copy),
        ("triad", lambda: limits.triad),
        (f"gather of rows of {WIDTH} floats", lambda: limits.gather),
    )
    for case, measure in memory:
        peak = None if known is None else known.bandwidth / 1e9
        yield row(case, "GB a second, read and written", measure() / 1e9, peak, name)
    for precision in ("float32", "highest", "bfloat16"):
        peak = None if known is None else known.products[precision] / 1e12
        case = f"matrix products, {precision}"
        yield row(case, "TFLOP a second", limits.products(precision) / 1e12, peak, name)


def of_work(limits: Limits, gathered: float, flops: float, precision: str) -> tuple[float, str]:
    """Least seconds of a piece of work, and what sets them.

    Args:
      limits: of the device.
      gathered: bytes of rows that are gathered; each is read and written once.
      flops: of matrix products.
      precision: of these.
    """
    parts = {
        "gathered rows": 2 * gathered / limits.gather,
        "matrix products": flops / limits.products(precision),
    }
    binding = max(parts, key=parts.__getitem__)
    return parts[binding], f"limit: {binding}"

"""What a traced program does: FLOPs of its matrix products, and kernels that it starts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Beginnings of the names of operations that are kernels of their own. The arithmetic around them is
# fused into them, or into one another.
_KERNELS = ("dot_general", "gather", "scatter", "sort", "cum", "reduce_", "cholesky", "triangular")
_COLLECTIVES = ("all_gather", "psum", "pmin", "all_to_all", "ragged_")


def product_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products in a jaxpr: two for each multiplication with its addition."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(product_flops(inner) for inner in _inner_jaxprs(equation.params))
    return total


def launches(jaxpr: Any, turns: int, platform: str = "gpu") -> int:
    """Kernels that a program starts on an accelerator, about.

    Args:
      jaxpr: of the program.
      turns: of a loop whose end depends on the data. A loop with collectives counts once: the
        first round of an exchange is nearly always enough. Other loops count as often as they run.
        Each turn starts at least one kernel, and one for the loop itself.
      platform: that of the accelerator, which chooses among branches for platforms.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = [launches(each, turns, platform) for each in _inner_jaxprs(equation.params)]
        if name in ("scan", "while"):
            own = 1 if any(map(_communicates, _inner_jaxprs(equation.params))) else turns
            times = equation.params["length"] if name == "scan" else own
            total += times * (max(1, sum(inner)) + 1)
        elif name == "cond":
            places = equation.params.get("branches_platforms")
            total += max(inner) if places is None else inner[_branch(places, platform)]
        elif name.startswith(_KERNELS + _COLLECTIVES):
            total += 1
        else:
            total += sum(inner)
    return total


def _communicates(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name.startswith(_COLLECTIVES)
        or any(map(_communicates, _inner_jaxprs(equation.params)))
        for equation in jaxpr.eqns
    )


def _branch(platforms: Sequence[Sequence[str] | None], platform: str) -> int:
    """The branch for a platform: one that names it, or the last one."""
    named = (place for place, names in enumerate(platforms) if names and platform in names)
    return next(named, len(platforms) - 1)


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)  # of a closed jaxpr
            if hasattr(one, "eqns"):
                yield one

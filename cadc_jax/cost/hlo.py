"""Counts in the text of an optimised program: bytes between devices and FLOPs of matrix products.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

_SIZES = {"pred": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_SIZES |= {f"{kind}{bits}": bits // 8 for kind in "su" for bits in (8, 16)}
_KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "collective-permute"),
    *("all-to-all", "ragged-all-to-all"),
)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


def received_bytes(text: str) -> dict[str, float]:
    """Bytes that a device receives in one run of a program, by kind of collective.

    Args:
      text: `compiled.as_text()`. A loop without a known trip count counts once, and a ragged
        all-to-all as if its buffer were filled.
    """
    found = dict.fromkeys(_KINDS, 0.0)
    chains = set()
    for times, _, result, name, rest in _instructions(text):
        kind = name.removesuffix("-start")
        if kind not in _KINDS:
            continue
        # A TPU spreads a collective over several computations, each of which repeats it.
        if chain := re.search(r'chain_id="(\d+)"', rest):
            if chain[1] in chains:
                continue
            chains.add(chain[1])
        if 'from-cross-replica-sharding="true"' in rest:  # the TPU's form of a reduce-scatter
            found["reduce-scatter"] += times * _bytes(result) * (1 - 1 / _group_size(rest))
            continue
        if name.endswith("-start") and result.startswith("(") and kind != "all-reduce":
            result = result[result.index(",") :]  # (operand, result)
        size, devices = _bytes(result), _group_size(rest)
        share = {
            "all-gather": (devices - 1) / devices,
            "all-reduce": 2 * (devices - 1) / devices,
            "reduce-scatter": devices - 1,
            "all-to-all": (devices - 1) / devices,
            "ragged-all-to-all": (devices - 1) / devices,
            "collective-permute": 1,
        }[kind]
        found[kind] += times * share * size
    return found


def product_flops(text: str) -> float:
    """FLOPs of all matrix products (`dot`) in one run of a program.

    Args:
      text: `compiled.as_text()`. A loop without a known trip count counts once.

    Raises:
      ValueError: if a `dot` has no shape or no axes.
    """
    total = 0.0
    shapes: dict[str, str] = {}
    for times, instruction, result, name, rest in _instructions(text):
        shapes[instruction] = result
        if name != "dot":
            continue
        left = rest.split(",")[0].split(")")[0].split("%")[-1].strip()
        shape = _SHAPE.match(rest) or _SHAPE.match(shapes[left])
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        if shape is None or axes is None:
            raise ValueError(f"no shape or axes in a matrix product: {rest[:200]}")
        dims = [int(n) for n in shape[2].split(",")]
        inner = math.prod(dims[int(axis)] for axis in axes[1].split(",") if axis)
        total += times * 2 * inner * _elements(result)
    return total


def _instructions(text: str) -> Iterator[tuple[int, str, str, str, str]]:
    """Every instruction: how often it runs, name, shape of the result, operation and the rest."""
    bodies: dict[str, list[tuple[str, ...]]] = {}
    current: list[tuple[str, ...]] | None = None
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(found.groups())
    yield from _run(bodies, entry, 1)


def _run(
    bodies: Mapping[str, Sequence[tuple[str, ...]]], name: str, times: int
) -> Iterator[tuple[int, str, str, str, str]]:
    for instruction, result, operation, rest in bodies.get(name, ()):
        yield times, instruction, result, operation, rest
        trips = _TRIPS.search(rest)
        runs = int(trips[1]) if operation == "while" and trips else 1
        called = _CALLED.findall(rest)
        if branches := re.search(r"branch_computations=\{([^}]*)\}", rest):
            called += [x.strip().lstrip("%") for x in branches[1].split(",")]
        for inner in called:
            yield from _run(bodies, inner, times * runs)


def _group_size(rest: str) -> int:
    """Number of devices in each group of a collective, in any of XLA's notations."""
    if found := re.search(r"replica_groups=mesh\[([^]]*)\].*?\{('[^}]*)\}", rest):
        axes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        used = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", found[2])  # 'x':(1)2 is part of an axis
        return math.prod(int(part or axes[axis]) for axis, part in used)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    raise ValueError(f"no groups of devices in a collective: {rest[:200]}")


def _elements(shape: str) -> int:
    return sum(math.prod(int(n) for n in x.split(",") if n) for _, x in _SHAPE.findall(shape))


def _bytes(shape: str) -> int:
    return sum(
        _SIZES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _SHAPE.findall(shape)
    )

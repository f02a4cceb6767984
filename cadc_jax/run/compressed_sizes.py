"""The bytes of a compressed data set (`run/compressed.py`), part by part."""

from cadc_jax.runtime import artifacts
from cadc_jax.runtime.artifacts import Artifact

FACTORS = "factors"  # its folder of factors
ROWS, MASK = "rows.parquet", "mask.parquet"


def sizes(made: Artifact) -> dict[str, int]:
    """Bytes of each part of a compressed data set."""
    path = made.path
    found = {
        "kept rows": (path / ROWS).stat().st_size,
        "factors": artifacts.size_of(path / FACTORS),
    }
    mask = path / MASK
    later = {
        "mask": mask.stat().st_size if mask.exists() else 0,
        "held-out rows": artifacts.size_of(path / "held_out"),
    }
    total = artifacts.size_of(path)
    rest = total - sum(found.values()) - sum(later.values())
    return found | {"content and vocabularies": rest} | later


def describe(made: Artifact) -> str:
    """A table of the bytes of each part, and their share of the raw log."""
    parts, raw = sizes(made), made.facts["raw"]
    names = ("kept rows", "factors", "content and vocabularies")
    lines = {name: parts[name] for name in names}
    lines["to train from"] = sum(lines.values())
    lines |= {"mask (evaluation, recommend)": parts["mask"]}
    lines |= {"held-out rows (evaluation)": parts["held-out rows"], "in all": sum(parts.values())}
    lines |= {"raw log, as stored": raw["stored"], "raw log, unpacked": raw["unpacked"]}
    text = [f"{'':<30} {'MB':>12} {'of stored':>10} {'of unpacked':>12}"]
    for name, size in lines.items():
        shares = (size / max(1, raw[x]) for x in ("stored", "unpacked"))
        text.append(f"{name:<30} {size / 1e6:>12,.3f} {next(shares):>10.1%} {next(shares):>12.1%}")
    return "\n".join(text)

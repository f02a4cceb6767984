"""Sweeps: all combinations of values of some fields of a configuration."""

import ast
import copy
import itertools
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cadc_jax.configuration import AUTO
from cadc_jax.errors import ConfigError
from cadc_jax.runtime.text import nearest

_FLAGS = {"rate": "rates", "seed": "seeds", "arms": "arms", "models": "models"}
_BOOLEANS = {"true": True, "false": False}


def variants(sweeps: Sequence[str], config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The combinations of some sweeps, by name: 'als.factors=64, als.alpha=5' -> fields, values.

    Args:
      sweeps: each as 'config.FIELD=VALUE,VALUE'. Without any there is one variant, named ''.
      config: has the fields, whose types the values take.

    Raises:
      ConfigError: if a field does not exist or has a flag of its own, or a value has another type.
    """
    fields: dict[str, dict[str, Any]] = {}
    for sweep in sweeps:
        name, equals, text = sweep.partition("=")
        field = name.strip().removeprefix("config.")
        if not equals or not text.strip():
            raise ConfigError(f"--sweep={sweep}: write config.FIELD=VALUE,VALUE")
        if field in fields:
            raise ConfigError(f"--sweep={sweep}: the field {field} is swept twice")
        fields[field] = _values(field, text, config)
    combinations = itertools.product(*(values.items() for values in fields.values()))
    found = {}
    for pairs in combinations:
        named = zip(fields, pairs, strict=True)
        name = ", ".join(f"{field}={text}" for field, (text, _) in named)
        found[name] = {field: value for field, (_, value) in zip(fields, pairs, strict=True)}
    return found


def _values(field: str, text: str, config: ConfigDict) -> dict[str, Any]:
    """The values of a field, by their text."""
    start = f"--sweep=config.{field}"
    if field in _FLAGS:
        raise ConfigError(f"{start}: a study has a flag for it, --{_FLAGS[field]}")
    known = _flat(config)
    if field not in known or field == "name":
        raise ConfigError(f"{start}: no such field to sweep{nearest(field, known, 'config.')}")
    found = {}
    for part in _split(text):
        value = _parsed(part, known[field])
        one = copy.deepcopy(config)
        try:
            if isinstance(value, bool) != isinstance(known[field], bool):
                raise TypeError
            one.update_from_flattened_dict({field: value})
        except TypeError:
            kind = type(known[field]).__name__
            raise ConfigError(f"{start}: {part!r} is no value of the type {kind}") from None
        found[part] = _flat(one)[field]
    return found


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Fields such as 'als.factors' -> values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _split(text: str) -> list[str]:
    """The parts between commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        depth += not quote and (letter in "([") - (letter in ")]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _parsed(text: str, like: Any) -> Any:
    """A value from its text, of the type of `like` as far as the text can be read so."""
    if isinstance(like, bool):
        return _BOOLEANS.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    if like == AUTO:  # stands for a number with a point
        return float(value) if type(value) is int else value
    return text if isinstance(like, str) and not isinstance(value, str) else value

"""Raw ids of users and items, as in the log, and the way back; needs no JAX.

Ids of Criteo's logs are written in hexadecimal digits, as in the log. The raw form of a hashed id
is not known; it is written '#<id>'.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from cadc_jax.data import encoding, packed, vocabulary
from cadc_jax.data.raw import Values, take
from cadc_jax.data.table import open_schema
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ConfigError
from cadc_jax.run.formats import COMPRESSED, open_stage
from cadc_jax.runtime import manifest
from cadc_jax.runtime.text import nearest

_COMPARED = 20_000  # values that an unknown one is compared with, at most: more take too long


class UnknownIdError(ConfigError):
    """No training row has this user or item."""


class RawIds:
    """Raw ids of the users or items of a prepared table."""

    def __init__(self, kind: str, known: Vocabulary, columns: Sequence[str], hexadecimal: bool):
        """The ids of a vocabulary.

        Args:
          kind: 'user' or 'item'.
          known: its vocabulary.
          columns: names of the columns that are crossed to it, or of the one it is; none of an id.
          hexadecimal: whether raw ids are written in hexadecimal digits.
        """
        self.kind, self.vocabulary = kind, known
        self.columns, self.hexadecimal = columns, hexadecimal

    def id_of(self, raw: str) -> int:
        """The id of a raw id, 0 if it is unknown. Values of crossed columns are joined by commas.

        Raises:
          ConfigError: if it cannot be an id of this table.
        """
        values = raw.split(",") if len(self.columns) > 1 else [raw]
        if self.columns and len(values) != len(self.columns):
            names = ",".join(self.columns)
            raise ConfigError(f"{self.kind} '{raw}': a {self.kind} is a value of each of {names}")
        try:
            columns = [
                np.array([int(x, 16) if x else -1]) if self.hexadecimal else np.array([x])
                for x in values
            ]
        except ValueError:
            raise ConfigError(f"{self.kind} '{raw}': not a hexadecimal number") from None
        return int(self.vocabulary.ids(vocabulary.cross(columns))[0])

    def known_id_of(self, raw: str) -> int:
        """The id of a raw id.

        Raises:
          UnknownIdError: if it is unknown; the text has a similar one, or examples.
          ConfigError: if it cannot be an id of this table.
        """
        found = self.id_of(raw)
        if not found:
            raise UnknownIdError(
                f"{self.kind} '{raw}': not among the {self.vocabulary.size - 1:,} {self.kind}s of "
                f"the training rows (such as {self.examples()}){self._nearest(raw)}"
            )
        return found

    def known_ids_of(self, raws: Sequence[str], most: int) -> np.ndarray:
        """Different ids [N] int32 of raw ids.

        Args:
          raws: the raw ids.
          most: how many there may be.

        Raises:
          UnknownIdError: naming one that is unknown.
          ConfigError: if there are none or too many, one is there twice, or none of this table.
        """
        if not 1 <= len(raws) <= most:
            raise ConfigError(f"{self.kind}s: give 1 to {most:,} of them, not {len(raws):,}")
        found: dict[int, str] = {}
        for raw in raws:
            number = self.known_id_of(raw)
            if number in found:
                raise ConfigError(f"{self.kind} '{raw}': is there twice; name it once")
            found[number] = raw
        return np.array(list(found), np.int32)

    def split(self, text: str) -> list[str]:
        """Raw ids that are joined by commas; crossed ones have a value for each column."""
        values, width = text.split(","), max(1, len(self.columns))
        return [",".join(values[k : k + width]) for k in range(0, len(values), width)]

    def of(self, ids: np.ndarray) -> Values:
        """Raw ids [N] of ids [N], none of them 0."""
        if self.vocabulary.hashed:
            return np.array([f"#{number}" for number in ids])
        values = take(self.vocabulary.values, ids - 1)
        if self.hexadecimal and len(self.columns) < 2:
            return np.array(["" if value < 0 else f"{value:08x}" for value in values])
        return values

    def examples(self) -> str:
        """A few of them, for messages."""
        size = min(3, self.vocabulary.size - 1)
        return ", ".join(str(raw) for raw in self.of(np.arange(1, size + 1)))

    def _nearest(self, raw: str) -> str:
        """A hint at the most similar text; a number is no misspelt other one."""
        values = self.vocabulary.values
        if isinstance(values, np.ndarray) or len(values) > _COMPARED:
            return ""
        return nearest(raw, values.to_pylist())


def of_table(prepared: pathlib.Path, source: str, kind: str) -> RawIds:
    """Raw ids of a prepared table.

    Args:
      prepared: its folder.
      source: `data.source` of its configuration.
      kind: 'user' or 'item'.
    """
    encoder = encoding.open_encoder(prepared)
    columns = {"user": encoder.user_features, "item": encoder.item_features}[kind]
    return RawIds(kind, getattr(encoder, kind), columns, source == "criteo")


def in_folder(folder: pathlib.Path, kind: str) -> list[RawIds]:
    """Raw ids of every prepared table in a work folder, or of a compressed data set.

    They are read as they are, before anything is checked or unpacked: to find out at once that an
    id is unknown. Another folder has none.
    """
    if (folder / manifest.NAME).exists():
        made = open_stage(folder)
        if made.settings["stage"] != COMPRESSED:
            return []
        values = packed.read_values(folder / "vocabularies" / f"{kind}.parquet")
        return [_of_schema(folder, made.settings["config"]["data"]["source"], kind, values)]
    found = []
    for path in sorted((folder / "prepare").glob("[!.]*")):
        hashed = open_schema(path).hashed.get(kind, 0)
        values = encoding.read_vocabulary(path, kind, hashed).values
        source = open_stage(path).settings["data"]["source"]
        found.append(_of_schema(path, source, kind, values))
    return found


def _of_schema(folder: pathlib.Path, source: str, kind: str, values: Values) -> RawIds:
    schema = open_schema(folder)
    columns = {"user": schema.user_features, "item": schema.item_features}[kind]
    known = Vocabulary(values, schema.hashed.get(kind, 0))
    return RawIds(kind, known, columns, source == "criteo")


def check_known(folder: pathlib.Path, kind: str, text: str) -> None:
    """Looks for raw ids in the vocabularies of a folder, before anything else is loaded.

    Args:
      folder: a work folder or a compressed data set.
      kind: 'user' or 'item'.
      text: the raw id; of items, ids joined by commas.

    Raises:
      UnknownIdError: if no prepared table there knows one of them.
    """
    fault = None
    for ids in in_folder(folder, kind):
        try:
            for raw in ids.split(text) if kind == "item" else [text]:
                ids.known_id_of(raw)
            return
        except ConfigError as error:
            fault = error
    if fault is not None:
        raise fault

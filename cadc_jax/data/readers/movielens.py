"""Reads MovieLens 100K, 1M and 10M from the original files of GroupLens.

All variants have the same features under the same names, so one configuration fits them all. Users
have `age` (the lower end of an age band: 1, 18, 25, 35, 45, 50 or 56), `gender`, `occupation` and
`zip` (the first character of the code). Items have `year` (of release, from the title; NaN if the
title has none) and the bag `genres`.

The table is in memory as a whole. A file may therefore have at most 512 MiB, unpacked, which is
twice the largest original one; its rows then take at most about 2 GiB.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cadc_jax.data import raw
from cadc_jax.data.readers import files
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.runtime import storage
from cadc_jax.runtime.storage import AnyPath

VARIANTS = ("100k", "1m", "10m")
HINT = (
    "get MovieLens at https://grouplens.org/datasets/movielens/, unpack it, and let `data.path` "
    "name the folder with its files"
)

_RATINGS = {
    "100k": ("u.data",),
    "1m": ("ratings.dat", "ratings.dat.gz", "ratings_no_timestamp.dat.gz"),
    "10m": ("ratings.dat", "ratings.dat.gz"),
}
_MOST_BYTES = 1 << 29
_BLOCK_BYTES = 1 << 22  # of text that is parsed at once
_AGE_BANDS = np.array([1, 18, 25, 35, 45, 50, 56])  # of MovieLens 1M
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
_ADVICE = "mend or remove the row"
_NO_GENRES = "(no genres listed)"  # stands for an empty list in 10M
_INT, _FLOAT, _TEXT = pa.int64(), pa.float32(), pa.string()
_VALID = {
    _INT: (re.compile(rb"-?[0-9]{1,18}"), "an integer"),
    _FLOAT: (re.compile(rb"[0-9]+(\.[0-9]+)?"), "a number"),
    _TEXT: (re.compile(rb".*"), "text"),
}


def read_movielens(folder: str | AnyPath, variant: str) -> raw.RawTable:
    """Reads the ratings, the items and the users; 10M has no users.

    Args:
      folder: the folder with the original files: u.data, u.user and u.item (100k), or ratings.dat,
        users.dat (1m) and movies.dat. Instead of ratings.dat there may be ratings.dat.gz, or for 1m
        ratings_no_timestamp.dat.gz. Ratings of three fields have no timestamp: `timestamp` is then
        None, and these rows cannot be split by time.
      variant: '100k', '1m' or '10m'.

    Returns:
      A table with `user` and `item` int64, `value` (the rating, 0.5 to 5), `timestamp` or None, and
      the content of items and users.

    Raises:
      ConfigError: another variant.
      DataError: the folder or one of its files is missing, too large, or has a malformed row.
    """
    if variant not in VARIANTS:
        raise ConfigError(
            f"MovieLens '{variant}': no such variant; take one of {', '.join(VARIANTS)}"
        )
    folder = storage.path_of(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {HINT}")
    names = content_files(variant)
    return dataclasses.replace(
        read_ratings(ratings_file(folder, variant), variant),
        users=read_users(folder / names["user"], variant) if "user" in names else None,
        items=read_items(folder / names["item"], variant),
    )


def ratings_file(folder: AnyPath, variant: str) -> AnyPath:
    """The file of ratings in a folder; where there is none, the first name it may have."""
    names = _RATINGS[variant]
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def content_files(variant: str) -> dict[str, str]:
    """Names of the files that describe the users ('user', not of 10M) and the items ('item')."""
    if variant == "100k":
        return {"user": "u.user", "item": "u.item"}
    return (
        {"user": "users.dat", "item": "movies.dat"} if variant == "1m" else {"item": "movies.dat"}
    )


def read_content(kind: str, path: str | AnyPath, variant: str) -> raw.EntityTable:
    """`read_users` if `kind` is 'user', else `read_items`."""
    return (read_users if kind == "user" else read_items)(path, variant)


def read_users(path: str | AnyPath, variant: str) -> raw.EntityTable:
    """Reads the users of '100k' (u.user) or '1m' (users.dat).

    Raises:
      DataError: the file is missing or damaged, or a row is malformed.
    """
    if variant == "100k":
        names = ("id", "age", "gender", "occupation", "zip")
        types = (_INT, _INT, _TEXT, _TEXT, _TEXT)
    else:
        names = ("id", "gender", "age", "occupation", "zip")
        types = (_INT, _TEXT, _INT, _INT, _TEXT)
    separator = "|" if variant == "100k" else "::"
    columns = _read_columns(path, separator, dict(zip(names, types, strict=True)))
    band = np.searchsorted(_AGE_BANDS, columns["age"].to_numpy(), side="right") - 1
    return raw.EntityTable(
        ids=raw.as_values(columns["id"]),
        categorical={
            "age": _AGE_BANDS[np.maximum(band, 0)],
            "gender": raw.as_values(columns["gender"]),
            "occupation": raw.as_values(columns["occupation"]),
            "zip": raw.as_values(pc.utf8_slice_codeunits(columns["zip"], 0, 1)),
        },
    )


def read_items(path: str | AnyPath, variant: str) -> raw.EntityTable:
    """Reads the items of '100k' (u.item), '1m' or '10m' (movies.dat).

    Raises:
      DataError: the file is missing or damaged, or a row is malformed.
    """
    if variant == "100k":
        types = dict.fromkeys(["id", "title", "release", "video", "url"], _TEXT)
        types |= {"id": _INT} | dict.fromkeys(_GENRES_100K, _INT)
        columns = _read_columns(path, "|", types)
        flags = np.stack([columns[genre].to_numpy() for genre in _GENRES_100K], axis=1)
        genres = pa.array("|".join(itertools.compress(_GENRES_100K, row)) for row in flags)
    else:
        columns = _read_columns(path, "::", {"id": _INT, "title": _TEXT, "genres": _TEXT})
        genres = pc.replace_substring(columns["genres"], _NO_GENRES, "")
    title = columns["title"]
    year = pc.struct_field(pc.extract_regex(title, r".*\((?P<year>[0-9]{4})\)"), "year")
    return raw.EntityTable(
        ids=raw.as_values(columns["id"]),
        dense={"year": pc.fill_null(pc.cast(year, _FLOAT), np.nan).to_numpy()},
        bags={"genres": raw.as_values(genres)},
        titles=raw.as_values(title),
    )


def read_ratings(path: AnyPath, variant: str) -> raw.RawTable:
    """Reads a file of ratings, without content.

    Raises:
      DataError: the file is missing, damaged or too large, or a row is malformed.
    """
    types = {"user": _INT, "item": _INT, "rating": _FLOAT, "timestamp": _INT}
    columns = _read_columns(path, " " if variant == "100k" else "::", types, optional="timestamp")
    rating = columns.pop("rating").to_numpy()
    outside = np.flatnonzero(~((rating >= 0.5) & (rating <= 5)))
    if len(outside):
        row = outside[0]
        raise DataError(
            f"{path}:{row + 1}: rating: {rating[row]:g} is not between 0.5 and 5; {_ADVICE}"
        )
    # Each column leaves its blocks before the next one follows.
    user, item = columns.pop("user").to_numpy(), columns.pop("item").to_numpy()
    timestamp = columns.pop("timestamp").to_numpy() if "timestamp" in columns else None
    return raw.RawTable(
        report=raw.ReadReport(rows=len(user)),
        user=user,
        item=item,
        value=rating,
        timestamp=timestamp,
    )


def _read_columns(
    path: str | AnyPath, separator: str, types: Mapping[str, pa.DataType], optional: str = ""
) -> dict[str, pa.ChunkedArray]:
    """Reads a text file without a header, in ASCII or Latin-1.

    Args:
      path: the file.
      separator: '|', '::', or ' ' for any run of spaces and tabs.
      types: name -> type of each field of a row.
      optional: the last field, if all rows may lack it.

    Returns:
      name -> [N] values.

    Raises:
      DataError: the file is missing, damaged or too large, or a row is malformed.
    """
    delimiter = {" ": b"\t", "::": b"\x1f"}.get(separator, separator.encode())
    tables: list[pa.Table] = []
    size = 0
    for block in files.read_blocks(path, _BLOCK_BYTES, HINT, utf8=False):
        size += len(block.text)
        if size > _MOST_BYTES:
            raise files.too_large_error(path, f"{_MOST_BYTES >> 20} MiB of text")
        if b"\0" in block.text:
            raise files.binary_error(path)
        if not block.text.strip():
            continue
        text = block.text
        if separator == " ":
            text = re.sub(rb"[ \t]+", b"\t", text).replace(b"\t\n", b"\n")
        text = text.replace(separator.encode(), delimiter)
        if optional and not tables:
            fields = text[: text.index(b"\n")].count(delimiter) + 1
            types = dict(list(types.items())[: max(fields, len(types) - 1)])
        try:
            tables.append(_parse(text, delimiter, types))
        except pa.ArrowInvalid as error:
            fault = _first_fault(text, delimiter, types, block.line) or f": {error}"
            raise DataError(f"{path}{fault}; {_ADVICE}") from error
    if not tables:
        raise files.no_rows_error(path)
    return dict(zip(types, pa.concat_tables(tables).columns, strict=True))


def _parse(text: bytes, delimiter: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Parses lines that have these fields; raises `pa.ArrowInvalid` if one has others."""
    encoding = "utf8" if text.isascii() else "latin-1"
    return csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(column_names=list(types), encoding=encoding, block_size=len(text)),
        csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
        csv.ConvertOptions(column_types=types, null_values=[]),
    )


def _first_fault(
    text: bytes, delimiter: bytes, types: Mapping[str, pa.DataType], first: int
) -> str:
    """':line: what is wrong' for the first malformed line, or '' if there is none.

    The first line of the text has the number `first`.
    """
    for number, line in enumerate(text.split(b"\n"), start=first):
        fields = line.split(delimiter)
        if line and len(fields) != len(types):
            return f":{number}: {len(fields)} fields, where a row has {len(types)}"
        for (name, kind), field in zip(types.items(), fields, strict=False):
            pattern, meaning = _VALID[kind]
            if line and not pattern.fullmatch(field):
                return f":{number}: {name}: {field[:40].decode('latin-1')!r} is not {meaning}"
    return ""

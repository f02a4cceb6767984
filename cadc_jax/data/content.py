"""Encodes the content of users and items: one row for each id of the vocabulary."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cadc_jax.data import encoding, raw, vocabulary
from cadc_jax.data.raw import EntityTable, Values
from cadc_jax.data.table import Features
from cadc_jax.data.vocabulary import Vocabulary
from cadc_jax.errors import ConfigError, DataError

_MOST_MEMBERS = 1000  # of a set: all sets take as much space as the largest


class EncodedContent(NamedTuple):
    """Content of all users or of all items.

    Attributes:
      columns: `dense` [ids, F] float32, `categorical` [ids, C] int32, and if there are any, `bags`
        [ids, Cb, L] int32; see `table.Table`.
      features: names and sizes of the features.
      vocabularies: '<kind>.<feature>' -> vocabulary.
      titles: [ids] text, if there are any.
    """

    columns: dict[str, np.ndarray]
    features: Features
    vocabularies: dict[str, Vocabulary]
    titles: pa.Array | None = None


def encode_content(kind: str, entities: EntityTable | None, known: Vocabulary) -> EncodedContent:
    """Encodes content by id.

    Statistics and vocabularies come from the entities that have an id. Id 0 and ids without content
    get the mean of dense features, id 0 of categorical ones, empty bags and empty titles.

    Args:
      kind: 'user' or 'item'.
      entities: the content, or None.
      known: the vocabulary of the users or items.

    Raises:
      ConfigError: if users have bags, or the ids are hashed.
      DataError: if no entity has an id, or a set has too many values.
    """
    num_dense, num_categorical = (
        (len(entities.dense), len(entities.categorical)) if entities else (0, 0)
    )
    dense = np.zeros((known.size, num_dense), np.float32)
    categorical = np.zeros((known.size, num_categorical), np.int32)
    columns = {"dense": dense, "categorical": categorical}
    if entities is None:
        return EncodedContent(columns, Features(), {})
    found = _find_entities(kind, entities, known)
    ids = known.ids(raw.take(entities.ids, found))
    for place, values in enumerate(entities.dense.values()):
        values = values[found]
        scale = encoding.statistics_of(values).scale(1.0)
        dense[ids, place] = encoding.standardise(values, *scale)
    categories: dict[str, Vocabulary] = {}
    members: dict[str, Vocabulary] = {}
    for place, (name, values) in enumerate(entities.categorical.items()):
        values = raw.take(values, found)
        categories[name] = vocabulary.of(values)
        categorical[ids, place] = categories[name].ids(values)
    if entities.bags:
        sets = {name: raw.take(values, found) for name, values in entities.bags.items()}
        columns["bags"], members = _encode_bags(sets, ids, known.size)
    titles = None
    if entities.titles is not None:
        entity = np.zeros(known.size, np.int64)  # of each id
        entity[ids] = found
        has_content = np.isin(np.arange(known.size), ids)
        titles = raw.as_values(entities.titles).take(pa.array(entity, mask=~has_content))
        titles = pc.fill_null(titles, "")
    features = Features(
        dense=tuple(entities.dense),
        categorical=tuple(categories),
        vocabulary_sizes=tuple(values.size for values in categories.values()),
        bags=tuple(members),
        bag_sizes=tuple(values.size for values in members.values()),
    )
    vocabularies = {f"{kind}.{name}": values for name, values in (categories | members).items()}
    return EncodedContent(columns, features, vocabularies, titles)


def grow_content(
    content: EncodedContent, kind: str, entities: EntityTable | None, known: Vocabulary
) -> EncodedContent:
    """Encoded content with the ids that a vocabulary has gained, at the end.

    Vocabularies and scales stay those of the earlier ids. A new id without an entity has no
    content, as in `encode_content`.

    Args:
      content: of the earlier ids, its columns [ids, ...].
      kind: 'user' or 'item'.
      entities: the content, of earlier ids too, from which the scales are computed again; or None.
      known: the grown vocabulary.

    Raises:
      DataError: if a set has too many values.
    """
    earlier = len(content.columns["dense"])
    columns = {name: _padded(x, known.size) for name, x in content.columns.items()}
    titles = content.titles
    if entities is None or known.size == earlier:
        if titles is not None:
            titles = pa.concat_arrays([titles, _no_titles(known.size - earlier)])
        return content._replace(columns=columns, titles=titles)
    ids = known.ids(entities.ids)
    new, before = np.flatnonzero(ids >= earlier), np.flatnonzero((ids > 0) & (ids < earlier))
    for place, values in enumerate(entities.dense.values()):
        scale = encoding.statistics_of(values[before]).scale(1.0)
        columns["dense"][ids[new], place] = encoding.standardise(values[new], *scale)
    for place, (name, categories) in enumerate(entities.categorical.items()):
        found = content.vocabularies[f"{kind}.{name}"].ids(raw.take(categories, new))
        columns["categorical"][ids[new], place] = found
    if entities.bags:
        sets = {name: _split(raw.take(x, new)) for name, x in entities.bags.items()}
        longest = max(columns["bags"].shape[2], _longest(sets))
        room = longest - columns["bags"].shape[2]
        columns["bags"] = np.pad(columns["bags"], ((0, 0), (0, 0), (0, room)), constant_values=-1)
        for number, (name, (row, order, members)) in enumerate(sets.items()):
            found = content.vocabularies[f"{kind}.{name}"].ids(members)
            columns["bags"][ids[new][row], number, order] = found
    if titles is not None and entities.titles is not None:
        entity = np.zeros(known.size - earlier, np.int64)
        entity[ids[new] - earlier] = new
        missing = ~np.isin(np.arange(earlier, known.size), ids[new])
        added = raw.as_values(entities.titles).take(pa.array(entity, mask=missing))
        titles = pa.concat_arrays([titles, pc.fill_null(added, "")])
    return content._replace(columns=columns, titles=titles)


def _padded(column: np.ndarray, size: int) -> np.ndarray:
    """A column with missing values up to row `size`: 0, or -1 of bags, which have three axes."""
    rows = [(0, size - len(column))] + [(0, 0)] * (column.ndim - 1)
    return np.pad(column, rows, constant_values=-1 if column.ndim == 3 else 0)


def _no_titles(count: int) -> pa.Array:
    return pa.array([""] * count, raw.TEXT)


def _find_entities(kind: str, entities: EntityTable, known: Vocabulary) -> np.ndarray:
    """Places [n] of the entities that have an id."""
    if entities.bags and kind == "user":
        raise ConfigError("sets of values are for items: name no bags of users")
    if known.hashed:
        raise ConfigError(
            f"the {kind}s have content, and more of them than data.max_vocabulary: raise it"
        )
    found = np.flatnonzero(known.ids(entities.ids))
    if not len(found):
        raise DataError(
            f"none of the {len(entities.ids)} ids of the {kind} content occurs among the training "
            f"rows, whose {kind} ids are like {known.values[:3].tolist()}; the ids of the content "
            f"are like {raw.as_values(entities.ids)[:3].tolist()}"
        )
    return found


def _encode_bags(
    sets: Mapping[str, Values], ids: np.ndarray, size: int
) -> tuple[np.ndarray, dict[str, Vocabulary]]:
    """Encodes sets of values: [size, Cb, L] int32, and the vocabulary of each of the Cb features.

    Args:
      sets: name -> [n] text, such as 'Comedy|Drama'.
      ids: [n] the ids whose sets they are.
      size: number of ids.

    Raises:
      DataError: if a set has too many values.
    """
    members = {name: _split(values) for name, values in sets.items()}
    longest = _longest(members)
    bags = np.full((size, len(members), longest), -1, np.int32)
    vocabularies = {}
    for number, (name, (row, place, values)) in enumerate(members.items()):
        vocabularies[name] = vocabulary.of(values)
        bags[ids[row], number, place] = vocabularies[name].ids(values)
    return bags, vocabularies


def _longest(members: Mapping[str, tuple[np.ndarray, np.ndarray, pa.Array]]) -> int:
    """Values of the largest set of all features, each as `_split` returns it."""
    longest = max(int(place.max(initial=0)) + 1 for _, place, _ in members.values())
    if longest > _MOST_MEMBERS:
        raise DataError(
            f"a set of {', '.join(members)} has {longest:,} values: at most {_MOST_MEMBERS:,} are "
            "supported; make the sets smaller"
        )
    return longest


def _split(sets: Values) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Splits sets [n] into their M members: row, place in the set, and value of each, [M]."""
    lists = pc.split_pattern(sets, "|")
    row, values = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    present = pc.not_equal(values, "")
    values, row = values.filter(present), row[present.to_numpy(zero_copy_only=False)]
    return row, np.arange(len(row)) - np.searchsorted(row, row), values

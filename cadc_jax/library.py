"""The method on plain arrays, without files or configurations: factorise, sample, train, score.

    import cadc_jax as cadc

    factors = cadc.factorize(user, item, num_users, num_items)
    kept = cadc.sample(len(user), rate=0.1)
    model = cadc.train(
        cadc.TwoTower(),
        {"user": user[kept], "item": item[kept]},
        {"user": held_out_user, "item": held_out_item},
        cadc.TrainConfig(negatives=4),
        factors=factors,
        rate=0.1,
        seen=(user, item),
    )
    scores, items = cadc.recommend(model, users, k=10, seen=(user, item))
    strangers = cadc.fold_in(factors, [[3, 7], [5]], pairs=(user, item))
    scores, items = cadc.recommend(model, strangers, k=10)
    scores, items = cadc.similar_items(model, [3, 7], k=10)

Ids count from 0. Prepared tables use item 0 for unknown items: it is never drawn as a negative.
Results depend on `seed` and the arguments alone.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadc_jax import sharding
from cadc_jax.data import negatives, sampling
from cadc_jax.data.frames import Log
from cadc_jax.data.table import Columns, Table, open_table, with_training_rows
from cadc_jax.errors import ConfigError, check_choice
from cadc_jax.evaluation import evaluate, resident, scorers
from cadc_jax.evaluation.ranking import SeenItems
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.factorization import als, autoencoder, sgd, similarity, topk
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, dot_tables
from cadc_jax.factorization.fold_in import solve as fold_in_users
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.models.embeddings import (
    Content,
    Tables,
    pair_batch,
    stacked_offsets,
    with_users,
)
from cadc_jax.run.arms import FACTOR_TABLES
from cadc_jax.training import assemble
from cadc_jax.training.assemble import EmbeddingStart, TrainingData
from cadc_jax.training.step import DRAWN, TrainConfig

EMBEDDINGS = ("frozen", "trainable", "random")
NUM_NEGATIVES = 99  # of each validation row
Pairs = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A trained network and everything that scoring needs.

    Attributes:
      network: the flax module.
      params: its parameters.
      tables: `user` [U, D], `item` [I, D] and `features` [V, E].
      content: features of users and items, and offsets of the stacked categorical features.
      history: for each evaluation the step, the mean loss since the last one, and the validation
        result (higher is better).
      best_step: step of the parameters; 0 if no step improved on the start.
      factors: the factors that its user and item tables are, but for their scale; None if these
        were trained.
    """

    network: nn.Module
    params: Any
    tables: Tables
    content: Content
    history: Sequence[Mapping[str, float]]
    best_step: int
    factors: Factors | None = None

    def __repr__(self) -> str:
        best = max((x["validation"] for x in self.history), default=float("nan"))
        sizes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.tables.items())
        name = type(self.network).__name__
        return f"Model({name}, {sizes}, step {self.best_step}, validation {best:.4f})"


@dataclasses.dataclass(frozen=True, repr=False)
class NewUsers:
    """Users from outside, as `fold_in` returns them.

    Attributes:
      factors: theirs, `user` [N, D], with the items [I, D] and biases of the factors it was given.
      items: the items of each.
    """

    factors: Factors
    items: SeenItems

    def __len__(self) -> int:
        """N."""
        return len(self.factors.user)

    def __repr__(self) -> str:
        return f"NewUsers({len(self):,} users)"


@dataclasses.dataclass(frozen=True)
class CompressedData:
    """A folder that `cadc compress` wrote, opened; arrays are memory-mapped.

    Attributes:
      table: the prepared table; its training split holds the kept rows alone.
      factors: of all training rows.
    """

    table: Table
    factors: Factors


def factorize(
    user: Any,
    item: np.ndarray | None = None,
    num_users: int = 0,
    num_items: int = 0,
    config: als.ALSConfig | AutoencoderConfig | sgd.SGDConfig | None = None,
    *,
    value: np.ndarray | None = None,
    label: np.ndarray | None = None,
    seed: int = 0,
) -> Factors:
    """Factors of all training rows, by ALS, the linear autoencoder, or logistic SGD.

    Args:
      user: [N] int ids in [0, num_users), or a SciPy sparse matrix [U, I], whose numbers are the
        values, or a `Log` of a frame, in place of the next three, `value` and `label`.
      item: [N] int ids in [0, num_items).
      num_users: U.
      num_items: I.
      config: an `ALSConfig` (the default), an `AutoencoderConfig` or an `SGDConfig`.
      value: [N] strength of each row, for ALS and the autoencoder; None: all 1.
      label: [N] in {0, 1}, for SGD on clicks and impressions; None: every row is a positive.
      seed: seed of the start and of drawn negatives.

    Returns:
      `user` [U, D] and `item` [I, D]; explicit ALS and SGD also give biases, the autoencoder its
      `encoder` [I, D].

    Raises:
      ConfigError: if the method does not take `value` or `label`, or there are no rows.
      DataError: if ids are outside their range.
    """
    if isinstance(user, Log):
        if item is not None or value is not None or label is not None:
            raise ConfigError("a log has the items, values and labels: give no others")
        num_users, num_items = len(user.users), len(user.items)
        value, label, (user, item) = user.value, user.label, user.pairs
    if hasattr(user, "tocoo"):
        if item is not None or value is not None:
            raise ConfigError("a sparse matrix has the items and the values: give no others")
        matrix = user.tocoo()
        (num_users, num_items), user, item = matrix.shape, matrix.row, matrix.col
        value = None if isinstance(config, sgd.SGDConfig) else matrix.data
    user, item = _ids("user", user), _ids("item", item)
    if not (num_users and num_items):
        raise ConfigError("num_users and num_items: say how many ids there are, such as len(IdMap)")
    config = config or als.ALSConfig()
    key = jax.random.key(seed)
    if isinstance(config, sgd.SGDConfig):
        if value is not None:
            raise ConfigError("logistic SGD takes labels, not values: use an ALSConfig for values")
        rows = sgd.TrainingRows(np.asarray(user), np.asarray(item), num_users, num_items, label)
        return sgd.fit(rows, config, key)[0]
    if label is not None:
        raise ConfigError(
            "ALS and the autoencoder take positives only: leave the others out, or use an SGDConfig"
        )
    pairs = Interactions.from_rows(user, item, num_users, num_items, value)
    if isinstance(config, AutoencoderConfig):
        return autoencoder.fit(pairs, config, key, mesh=sharding.make_mesh())[0]
    return als.fit(pairs, config, key, mesh=sharding.make_mesh())[0]


def _ids(name: str, given: Any) -> np.ndarray:
    """A column of ids.

    Raises:
      ConfigError: if it is not a column of whole numbers.
    """
    column = np.asarray(given)
    if column.ndim != 1:
        raise ConfigError(f"{name}: must be a column [N] of ids, not of shape {column.shape}")
    whole = column.dtype.kind in "iu"
    if column.dtype.kind == "f":
        whole = bool(np.all(column == np.trunc(column)))
    if not whole:
        raise ConfigError(
            f"{name}: ids must be whole numbers, not {column.dtype}; cadc.IdMap.of(values) numbers "
            "other values"
        )
    return column if column.dtype.kind in "iu" else column.astype(np.int64)


def sample(num_rows: int, rate: float, seed: int = 0) -> np.ndarray:
    """Ids [kept] int64 of the rows to keep, ascending; see `sampling.keep`.

    Raises:
      ValueError: if rate is outside (0, 1].
    """
    return np.flatnonzero(sampling.keep(np.arange(num_rows), rate, seed))


def train(
    network: nn.Module,
    rows: Columns,
    validation: Columns,
    config: TrainConfig,
    *,
    factors: Factors | None = None,
    embeddings: str = "frozen",
    logits: bool = False,
    num_users: int = 0,
    num_items: int = 0,
    vocabulary_sizes: Sequence[int] = (),
    embedding_dim: int = 16,
    content: Content | None = None,
    num_features: int = 0,
    rate: float = 1.0,
    seen: Pairs | None = None,
    seed: int = 0,
) -> Model:
    """Trains a network on kept rows until the validation result stops improving.

    Args:
      network: `DLRM`, `DCN` or `TwoTower`.
      rows: `user` [N] and `item` [N] int; `label` [N] in {0, 1} if there are impressions (without
        it every row is a positive, and `config.negatives` negatives are drawn for it); optional
        features of the row, `dense` [N, F] float and `categorical` [N, C] int.
      validation: held-out rows with the same columns. With labels the log loss decides, without
        labels the NDCG@10 of each row's item among 99 others.
      config: how to train.
      factors: factors of all training rows; needed unless `embeddings` is 'random'.
      embeddings: 'frozen', 'trainable' (they start from the factors) or 'random'.
      logits: whether the factors' scores are logits, as those of `SGDConfig` are: a `TwoTower` then
        starts with just these scores.
      num_users: U, if there are no factors.
      num_items: I, if there are no factors.
      vocabulary_sizes: [C] number of ids of each column of `categorical`.
      embedding_dim: E, width of their embeddings and of random user and item embeddings; a DLRM
        must have the same `embedding_dim`.
      content: features of users and items, as `embeddings.content_of` makes them of a prepared
        table; None for none.
      num_features: V, with `content`: rows of the stacked table of all categorical features.
      rate: share of all training rows that `rows` are, in (0, 1]; see `config.negatives_from`.
      seen: user and item of pairs that validation does not rank, such as all training rows; they
        have no part in training. None: the pairs in `rows`.
      seed: seed of initialisation, order, negatives and dropout.

    Raises:
      ConfigError: if the arguments contradict each other.
      TrainingError: if the loss or the validation result is not finite.
    """
    check_choice("embeddings", embeddings, EMBEDDINGS)
    if embeddings != "random" and factors is None:
        raise ConfigError(f"embeddings={embeddings!r} needs factors; see `factorize`")
    if factors is not None and not isinstance(factors, Factors):
        raise ConfigError("factors: must be `Factors`; of two arrays, cadc.Factors(user, item)")
    if factors is not None:
        num_users, num_items = len(factors.user), len(factors.item)
    if not (num_users and num_items):
        raise ConfigError("without factors, give num_users and num_items")
    clicks = "label" in rows
    draws = config.loss in DRAWN and not clicks
    if draws != (config.negatives > 0):
        why = "rows with labels have theirs" if clicks else f"the loss {config.loss!r} draws none"
        if draws:
            why = "rows without labels need some"
        raise ConfigError(f"negatives={config.negatives}: {why}")
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate}: must be above 0 and at most 1")
    rows, validation = _whole(rows), _whole(validation)
    if not len(validation["user"]):
        raise ConfigError("validation: has no row; it decides when training ends")
    start = _embedding_start(embeddings, factors, logits, embedding_dim)
    sampler = None
    if not clicks:
        sampler = assemble.negatives_of(config, rows, num_items, rate, start.factors)
        keys = sampler.known if seen is None else negatives.distinct_keys(*seen, num_items)
        validation = _with_negatives(validation, keys, num_items, seed)
    content = content or _no_content(num_users, num_items, vocabulary_sizes)
    data = TrainingData(rows, content, num_features or int(sum(vocabulary_sizes)), sampler)

    quality = resident.of_clicks(validation) if clicks else resident.of_sampled(validation, 10)
    fitted = assemble.train(network, config, data, start, quality, seed)
    frozen = factors if embeddings == "frozen" else None
    made = fitted.params, fitted.tables, content, fitted.history, fitted.best_step
    return Model(network, *made, frozen)


def _embedding_start(
    embeddings: str, factors: Factors | None, logits: bool, width: int
) -> EmbeddingStart:
    if embeddings == "random" or factors is None:
        return EmbeddingStart(width, width)
    user, item = map(np.asarray, dot_tables(factors))
    frozen = FACTOR_TABLES if embeddings == "frozen" else frozenset()
    return EmbeddingStart(user.shape[1], width, (user, item), frozen, logits=logits)


def score(model: Model, rows: Columns) -> np.ndarray:
    """Logits [N] float32 of rows.

    Args:
      model: as `train` returns it.
      rows: `user` [N], `item` [N] and the features that the model was trained with.
    """
    rows, found = _whole(rows), []
    scorer, count = _scorer(model), len(rows["user"])
    block = min(evaluate.CLICK_BLOCK, count)
    for start in range(0, count, block):
        places = np.minimum(np.arange(start, start + block), count - 1)
        batch = {name: rows[name][places] for name in ("user", "item", "dense", "categorical")}
        batch["item"] = batch["item"][:, None]
        found.append(np.asarray(scorer.score(batch))[:, 0])
    return np.concatenate(found)[:count]


def recommend(
    model: Model | Factors,
    users: np.ndarray | NewUsers,
    k: int,
    seen: Pairs | None = None,
    block: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of highest score for each user, best first, without features of the row.

    Args:
      model: as `train` returns it, or factors, which score by their dot product and biases.
      users: [B] int, or users from outside, as `fold_in` returns them. A model takes these if it
        was trained with frozen factors; their own features are those of user 0, which in a
        prepared table stands for all unknown ones.
      k: at most I.
      seen: user and item [N] of pairs that are not to be recommended; None for none. Users from
        outside are not recommended their own items.
      block: users scored at a time.

    Returns:
      logits (scores of factors) [B, k] float32 and item ids [B, k] int32; -inf and id -1 if a user
      has fewer items left.

    Raises:
      ConfigError: if k is not between 1 and I, or the model cannot take users from outside.
    """
    if isinstance(users, NewUsers):
        if seen is not None:
            raise ConfigError("seen: users from outside bring their own items")
        model, excluded = _with_users(model, users), users.items
        users = np.arange(len(users))
    else:
        user, item = map(np.asarray, seen or (np.zeros(0, np.int32), np.zeros(0, np.int32)))
        excluded = SeenItems.of_pairs(user, item, _sizes(model)[0])
    num_items, users = _sizes(model)[1], np.asarray(users, np.int32)
    _check_k(k, num_items)
    scorer = _scorer(model)
    logits = np.zeros((len(users), k), np.float32)
    ids = np.zeros((len(users), k), np.int32)
    wide = min(num_items, scorer.pairs // block)
    for start in range(0, len(users), block):
        part = users[start : start + block]
        padded = np.pad(part, (0, block - len(part)), mode="edge")  # one shape, one program
        found = topk.search(
            lambda items, users=padded: scorer.score(pair_batch(users, items[None])),  # type: ignore[misc]
            range(num_items),
            k,
            excluded.padded(padded, fill=-1),
            wide,
        )
        logits[start : start + block], ids[start : start + block] = (x[: len(part)] for x in found)
    return logits, ids


def _with_users(model: Model | Factors, new: NewUsers) -> Model | Factors:
    """The model with the users from outside in place of its own."""
    if isinstance(model, Factors):
        if np.shape(model.item) != np.shape(new.factors.item):
            raise ConfigError("users: were folded in by other factors than these")
        return new.factors
    if model.factors is None:
        raise ConfigError(
            "model: its embeddings were trained, so vectors of users from outside do not fit it; "
            "train it with embeddings='frozen', or recommend by the factors"
        )
    if np.shape(model.factors.item) != np.shape(new.factors.item):
        raise ConfigError("users: were folded in by other factors than those of the model")
    user, item = map(np.asarray, dot_tables(model.factors))
    scale = assemble.divisors((user, item))[0]
    vectors = jnp.asarray(np.asarray(dot_tables(new.factors)[0]) / scale, jnp.float32)
    tables, content = with_users(model.tables, model.content, vectors, np.zeros(len(new), int))
    return dataclasses.replace(model, tables=tables, content=content)


def fold_in(
    factors: Factors,
    new_users: Sequence[Sequence[int]],
    config: als.ALSConfig | AutoencoderConfig | None = None,
    *,
    pairs: Pairs | None = None,
    values: Sequence[Sequence[float]] | None = None,
) -> NewUsers:
    """Vectors of users from outside, made of their items; the items' stay as they are.

    The vector of a user is what the factorisation would make of these items: of the autoencoder
    the sum of their rows of the encoder, of ALS the solution of the user's own equations.

    Args:
      factors: of `factorize`, by ALS or the autoencoder.
      new_users: the different items of each user, such as `[[3, 7], [5]]`.
      config: the settings of `factorize`; None: its defaults, or the autoencoder if the factors
        have an encoder.
      pairs: ALS: user and item of the rows that were factorised. Their numbers are the unit of
        the penalty.
      values: the strength of each item of `new_users`; None: all 1. Explicit ALS needs them.

    Raises:
      ConfigError: if a list is empty or names an item twice, an item that is not there or one that
        no row had, or if the factors cannot do this.
    """
    if config is None:
        config = AutoencoderConfig() if factors.encoder is not None else als.ALSConfig()
    explicit = isinstance(config, als.ALSConfig) and config.feedback == "explicit"
    if explicit and values is None:
        raise ConfigError("values: explicit feedback needs the ratings of these users")
    if isinstance(config, als.ALSConfig) and pairs is None:
        raise ConfigError("pairs: ALS needs user and item of the rows that were factorised")
    lists = [_own_items(factors, place, items) for place, items in enumerate(new_users)]
    counts = list(map(len, lists))
    if values is not None and list(map(len, values)) != counts:
        raise ConfigError("values: must have a number for each item of new_users")
    user, item = np.repeat(np.arange(len(lists)), counts), np.concatenate([_NO_IDS, *lists])
    strength = None if values is None else np.concatenate([np.zeros(0), *values])
    matrix = Interactions.from_rows(user, item, len(lists), len(factors.item), strength)
    extent = None
    if pairs is not None:
        sizes = len(factors.user), len(factors.item)
        extent = Interactions.from_rows(
            _ids("user", pairs[0]), _ids("item", pairs[1]), *sizes
        ).extent
    vectors, bias = fold_in_users(factors, matrix, config, extent=extent)
    bias = None if bias is None else np.asarray(bias)
    folded = dataclasses.replace(_on_host(factors), user=np.asarray(vectors), user_bias=bias)
    return NewUsers(folded, SeenItems.of_pairs(user, item.astype(np.int32), len(lists)))


_NO_IDS = np.zeros(0, np.int64)


def _own_items(factors: Factors, place: int, items: Sequence[int]) -> np.ndarray:
    """The items of one user from outside, checked."""
    name, num_items = f"new_users[{place}]", len(factors.item)
    if not len(items):
        raise ConfigError(f"{name}: has no item: leave it out, and recommend what is popular")
    ids = _ids(name, items).astype(np.int64)
    if np.any(wrong := (ids < 0) | (ids >= num_items)):
        raise ConfigError(f"{name}: item {ids[wrong][0]} is not among the {num_items} items")
    different, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        raise ConfigError(f"{name}: item {different[counts > 1][0]} is there twice; name it once")
    without = ~np.asarray(factors.item)[ids].any(1)
    if np.any(without):
        raise ConfigError(
            f"{name}: item {ids[without][0]} had no row when the factors were made (cadc.IdMap "
            "gives unknown values id 0): leave it out"
        )
    return ids


def similar_items(
    model: Model | Factors, items: Sequence[int] | np.ndarray, k: int, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The k items most similar to each of some items, best first, without the item itself.

    Similarity is the cosine of the angle between the vectors of two items: their factors, or the
    item embeddings of a model that trained them. Biases and features have no part in it. Items
    whose vector is 0, which no row had, are similar to none.

    Args:
      model: as `train` returns it, or factors.
      items: [B] int.
      k: at most I - 1.
      block: items compared with all at a time.

    Returns:
      cosines [B, k] float32 and item ids [B, k] int32; -inf and -1 where there are no more items.

    Raises:
      ConfigError: if k is not between 1 and I - 1, or an item is not there or has a vector of 0.
    """
    if isinstance(model, Model):
        table = model.tables["item"] if model.factors is None else model.factors.item
    else:
        table = model.item
    ids, num_items = _ids("items", items), len(table)
    _check_k(k, num_items - 1)
    if np.any(wrong := (ids < 0) | (ids >= num_items)):
        raise ConfigError(f"items: {ids[wrong][0]} is not among the {num_items} items")
    directions = similarity.directions(table)
    if np.any(wrong := ~directions[ids].any(1)):
        raise ConfigError(f"items: the vector of item {ids[wrong][0]} is 0: no row had it")
    return similarity.nearest(directions, ids, k, block)


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise ConfigError(f"k={k}: must be between 1 and the {most} items")


def _sizes(model: Model | Factors) -> tuple[int, int]:
    """U and I."""
    if isinstance(model, Factors):
        return len(model.user), len(model.item)
    return len(model.tables["user"]), len(model.tables["item"])


def _scorer(model: Model | Factors) -> Scorer:
    if isinstance(model, Factors):
        return scorers.factors(*dot_tables(_on_host(model)), calibrated=False)
    return scorers.network(model.network, model.params, model.tables, model.content)


def _on_host(factors: Factors) -> Factors:
    return jax.tree.map(np.asarray, factors)


def load(folder: str | pathlib.Path) -> CompressedData:
    """Opens a compressed data set.

    Raises:
      ArtifactError: if the folder is no compressed data set, or is damaged.
    """
    # These read configurations, which nothing else here needs.
    from cadc_jax.run import compressed
    from cadc_jax.run.factor_files import open_factors

    given = compressed.open_compressed(pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as name:
        unpacked = pathlib.Path(name)
        compressed.unpack_into(given, unpacked)
        table = with_training_rows(open_table(unpacked / "table"), unpacked / "rows")
        _ = dict(table.splits), dict(table.known)  # what is mapped outlives its file
        return CompressedData(table, open_factors(unpacked / "factors"))


def _whole(rows: Columns) -> dict[str, np.ndarray]:
    """The rows with every column that a batch has, each in its type."""
    for name in ("user", "item"):
        if name not in rows:
            raise ConfigError(f"rows have no column {name!r}")
        _ids(name, rows[name])
    count = len(rows["user"])
    types = {
        "user": np.int32,
        "item": np.int32,
        "label": np.float32,
        "dense": np.float32,
        "categorical": np.int32,
    }
    if unknown := set(rows) - set(types):
        raise ConfigError(
            f"rows have no column {sorted(unknown)[0]!r}; there are {', '.join(types)}"
        )
    none = {"dense": np.zeros((count, 0)), "categorical": np.zeros((count, 0))}
    whole = {name: np.asarray(x, types[name]) for name, x in (none | dict(rows)).items()}
    for name, column in whole.items():
        if len(column) != count:
            raise ConfigError(f"{name} has {len(column)} rows, and user {count}")
    return whole


def _with_negatives(
    rows: dict[str, np.ndarray], keys: np.ndarray, num_items: int, seed: int
) -> dict[str, np.ndarray]:
    own = negatives.pair_keys(rows["user"], rows["item"], num_items)
    seen = np.union1d(keys, own)
    most = np.bincount(seen // num_items)[rows["user"]].max()  # items that one of them has seen
    count = min(NUM_NEGATIVES, num_items - 1 - int(most))
    if count < 1:
        raise ConfigError("a validation user has seen every item: none is left to rank")
    drawn = negatives.draw_for_evaluation(rows["user"], seen, num_items, count, seed)
    return rows | {"negatives": drawn}


def _no_content(num_users: int, num_items: int, vocabulary_sizes: Sequence[int]) -> Content:
    offsets = stacked_offsets(tuple(vocabulary_sizes) or (0,))[: len(vocabulary_sizes)]
    return Content(
        user_dense=jnp.zeros((num_users, 0)),
        user_categorical=jnp.zeros((num_users, 0), jnp.int32),
        item_dense=jnp.zeros((num_items, 0)),
        item_categorical=jnp.zeros((num_items, 0), jnp.int32),
        context_offsets=jnp.asarray(offsets, jnp.int32),
    )

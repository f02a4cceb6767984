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
from cadc_jax.factorization import als, autoencoder, sgd, topk
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors, dot_tables
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.models.embeddings import Content, Tables, pair_batch, stacked_offsets
from cadc_jax.run.arms import FACTOR_TABLES
from cadc_jax.training import assemble
from cadc_jax.training.assemble import EmbeddingStart, TrainingData
from cadc_jax.training.step import TrainConfig

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
    """

    network: nn.Module
    params: Any
    tables: Tables
    content: Content
    history: Sequence[Mapping[str, float]]
    best_step: int

    def __repr__(self) -> str:
        best = max((x["validation"] for x in self.history), default=float("nan"))
        sizes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.tables.items())
        name = type(self.network).__name__
        return f"Model({name}, {sizes}, step {self.best_step}, validation {best:.4f})"


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
    if clicks == (config.negatives > 0):
        why = "rows with labels have theirs" if clicks else "rows without labels need some"
        raise ConfigError(f"negatives={config.negatives}: {why}")
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate}: must be above 0 and at most 1")
    rows, validation = _whole(rows), _whole(validation)
    if not len(validation["user"]):
        raise ConfigError("validation: has no row; it decides when training ends")
    start = _embedding_start(embeddings, factors, embedding_dim)
    sampler = None
    if not clicks:
        sampler = assemble.negatives_of(config, rows, num_items, rate, start.factors)
        keys = sampler.known if seen is None else negatives.distinct_keys(*seen, num_items)
        validation = _with_negatives(validation, keys, num_items, seed)
    content = content or _no_content(num_users, num_items, vocabulary_sizes)
    data = TrainingData(rows, content, num_features or int(sum(vocabulary_sizes)), sampler)

    quality = resident.of_clicks(validation) if clicks else resident.of_sampled(validation, 10)
    fitted = assemble.train(network, config, data, start, quality, seed)
    return Model(network, fitted.params, fitted.tables, content, fitted.history, fitted.best_step)


def _embedding_start(embeddings: str, factors: Factors | None, width: int) -> EmbeddingStart:
    if embeddings == "random" or factors is None:
        return EmbeddingStart(width, width)
    user, item = map(np.asarray, dot_tables(factors))
    frozen = FACTOR_TABLES if embeddings == "frozen" else frozenset()
    return EmbeddingStart(user.shape[1], width, (user, item), frozen)


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
    model: Model, users: np.ndarray, k: int, seen: Pairs | None = None, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of highest logit for each user, best first, without features of the row.

    Args:
      model: as `train` returns it.
      users: [B] int.
      k: at most I.
      seen: user and item [N] of pairs that are not to be recommended; None for none.
      block: users scored at a time.

    Returns:
      logits [B, k] float32 and item ids [B, k] int32; logit -inf and id -1 if a user has fewer
      items left.

    Raises:
      ConfigError: if k is not between 1 and I.
    """
    num_users, num_items = len(model.tables["user"]), len(model.tables["item"])
    if not 1 <= k <= num_items:
        raise ConfigError(f"k={k}: must be between 1 and the {num_items} items")
    user, item = map(np.asarray, seen or (np.zeros(0, np.int32), np.zeros(0, np.int32)))
    excluded = SeenItems.of_pairs(user, item, num_users)
    scorer, users = _scorer(model), np.asarray(users, np.int32)
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


def _scorer(model: Model) -> Scorer:
    return scorers.network(model.network, model.params, model.tables, model.content)


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

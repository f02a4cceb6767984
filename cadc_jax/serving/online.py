"""Recommendations for a few users at a time, as a service asks for them.

All requests have the same shapes: a batch of B users, padded, whoever they are. Known users come
with their row of the user table, new ones with a vector made of their items, and both with the
items that are not to be recommended. So the first requests compile, and no later one does.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.errors import ConfigError
from cadc_jax.evaluation import scorers
from cadc_jax.evaluation.ranking import SeenItems
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.factorization import similarity, topk
from cadc_jax.models import embeddings
from cadc_jax.run.arms import MF_ALONE, POPULARITY
from cadc_jax.run.factor_files import open_factors
from cadc_jax.serving import raw_ids
from cadc_jax.serving.context import ITEM_BLOCK, context_of
from cadc_jax.serving.new_users import NewUsers, open_new_users
from cadc_jax.serving.trained import Trained


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes of all requests.

    Attributes:
      users: B, users (or items to compare) at a time.
      items: L, items that a new user may name.
      k: items found for each.
    """

    users: int = 16
    items: int = 256
    k: int = 100


class Recommender:
    """Recommends by a trained model, in programs of fixed shapes."""

    def __init__(self, trained: Trained, shapes: Shapes | None = None):
        shapes = shapes or Shapes()
        table, self.trained = trained.table, trained
        self.candidates = range(1, table.schema.num_items)  # id 0 is no item
        self.shapes = dataclasses.replace(shapes, k=min(shapes.k, len(self.candidates)))
        self.users, self.items = (
            raw_ids.of_table(trained.prepared, trained.source, kind) for kind in ("user", "item")
        )
        self._seen = None
        if table.known:
            self._seen = SeenItems(table.known["offsets"], table.known["items"])
        self._context = context_of(table)
        self._tables = {name: jnp.asarray(x) for name, x in trained.tables.items()}
        self._user = np.asarray(trained.tables.get("user", np.zeros((table.schema.num_users, 0))))
        self._content = embeddings.content_of(table)

    def best(self, asked: Sequence[int | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The best items of known and new users.

        Args:
          asked: for each of at most B users the id, or the ids [N] of at most L items.

        Returns:
          scores [len(asked), k] float32 and item ids [len(asked), k] int32, best first, without
          what the user has had; -inf and -1 where fewer are left.

        Raises:
          ConfigError: if there are new users, and the model takes none.
        """
        rows, longest = self.shapes.users, self.shapes.items
        if self._seen is not None:
            longest = max(longest, self._seen.longest)
        like, exclude = np.zeros(rows, np.int32), np.full((rows, longest), -1, np.int32)
        new = np.full((rows, self.shapes.items), -1, np.int32)
        for place, one in enumerate(asked):
            if isinstance(one, np.ndarray):
                new[place, : len(one)] = exclude[place, : len(one)] = one
            else:
                like[place] = one
        if self._seen is not None and np.any(like):
            seen = self._seen.padded(like, fill=-1)
            exclude[like > 0, : seen.shape[1]] = seen[like > 0]
        vectors = np.array(self._user[like], np.float32)
        is_new = new[:, 0] >= 0
        if is_new.any() and self.trained.arm is not POPULARITY:
            vectors[is_new] = self._new_users.vectors(new)[is_new]
        scorer = self._scorer(vectors, like)
        batch = {"user": np.arange(rows, dtype=np.int32), **self._context(like)}
        found = topk.search(
            lambda ids: scorer.score({**batch, "item": ids[None]}),
            self.candidates,
            self.shapes.k,
            exclude,
            min(ITEM_BLOCK, max(1, scorer.pairs // rows), len(self.candidates)),
        )
        scores, ids = (x[: len(asked)] for x in found)
        return scores, ids

    def similar(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items most similar to each of at most B items: see `library.similar_items`.

        Raises:
          ConfigError: if an item has no vector.
        """
        directions = self._directions
        if np.any(without := ~directions[items].any(1)):
            raw = self.items.of(items[without])[0]
            raise ConfigError(f"item '{raw}': no training row has it: nothing is similar")
        k = min(self.shapes.k, len(self.candidates) - 1)
        return similarity.nearest(directions, items, k, self.shapes.users)

    @functools.cached_property
    def _new_users(self) -> NewUsers:
        return open_new_users(self.trained, self.shapes.items)

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        if self.trained.factors is not None:
            table = open_factors(self.trained.factors.path).item
        elif "item" in self.trained.tables:
            table = self.trained.tables["item"]
        else:
            raise ConfigError(f"{self.trained}: has no vectors; choose --arm={MF_ALONE.name}")
        found = similarity.directions(table)
        found[0] = 0  # no item
        return found

    @functools.cached_property
    def _popularity(self) -> Scorer:
        return scorers.popularity(self.trained.table)

    def _scorer(self, vectors: np.ndarray, like: np.ndarray) -> Scorer:
        """Scores of users with vectors [B, W], and with the features of the users `like` [B]."""
        trained, user = self.trained, jax.device_put(vectors)
        if trained.arm is POPULARITY:
            return self._popularity
        if trained.network is None:
            return scorers.factors(user, self._tables["item"], calibrated=False)
        tables, content = embeddings.with_users(self._tables, self._content, user, like)
        return scorers.network(trained.network, trained.params, tables, content)

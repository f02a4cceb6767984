"""Recommenders without a network, on the same interactions: EASE and item neighbours.

Their options (a regularisation, a number of neighbours, a weighting) are chosen by the full ranking
of the validation split. The test split is not used for that.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from cadc_jax.data.table import Table
from cadc_jax.evaluation import evaluate
from cadc_jax.evaluation.scorers import Scorer
from cadc_jax.study.cells import EASE, ITEM_KNN

EASE_ITEMS = 12_000  # EASE inverts a float64 matrix of items x items: 1.2 GB for so many
REGULARIZATIONS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
NEIGHBOURS = (20, 50, 100, 200, 400)
BM25 = ((1.2, 0.75), (100.0, 0.5))  # (K1, B): usual for texts, and nearly without saturation

Candidates = Iterator[tuple[dict[str, Any], Scorer]]  # options and their scorer


def matrix_of(table: Table) -> scipy.sparse.csr_matrix:
    """The training pairs as a matrix [U, I] float32 of 0 and 1."""
    train, schema = table.splits["train"], table.schema
    ones = np.ones(len(train["user"]), np.float32)
    matrix = scipy.sparse.csr_matrix(
        (ones, (train["user"], train["item"])), shape=(schema.num_users, schema.num_items)
    )
    matrix.data[:] = 1  # repeated pairs were added up
    return matrix


def ease(matrix: scipy.sparse.csr_matrix, regularization: float) -> np.ndarray:
    """Item-item weights B of EASE (Steck 2019, arXiv 1905.03375, eq. 8).

    They minimise |X - X B|^2 + regularization |B|^2 with a zero diagonal.

    Args:
      matrix: X [U, I].
      regularization: above 0.

    Returns:
      [I, I] float32.
    """
    gram = (matrix.T @ matrix).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def ease_candidates(matrix: scipy.sparse.csr_matrix) -> Candidates:
    """EASE with each regularisation."""
    for regularization in REGULARIZATIONS:
        yield {"regularization": regularization}, scorer(matrix, ease(matrix, regularization))


def neighbour_candidates(matrix: scipy.sparse.csr_matrix) -> Candidates:
    """Item neighbours by cosine and by BM25, as the library `implicit` computes them.

    Raises:
      ImportError: if the library is not installed.
    """
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    for neighbours in NEIGHBOURS:
        models: list[tuple[dict[str, Any], Any]] = [
            ({"kind": "cosine"}, CosineRecommender(K=neighbours))
        ]
        for k1, b in BM25:
            model = BM25Recommender(K=neighbours, K1=k1, B=b)
            models.append(({"kind": "BM25", "K1": k1, "B": b}, model))
        for options, model in models:
            model.fit(matrix, show_progress=False)
            similarity = model.similarity.tocsr().astype(np.float32)
            yield options | {"K": neighbours}, scorer(matrix, similarity)


CANDIDATES = {EASE: ease_candidates, ITEM_KNN: neighbour_candidates}


def scorer(
    matrix: scipy.sparse.csr_matrix, weights: np.ndarray | scipy.sparse.csr_matrix
) -> Scorer:
    """Scores items by what the training items of a user say: rows of X B.

    Args:
      matrix: X [U, I].
      weights: B [I, I], dense or sparse.
    """

    def score(batch):
        scores = matrix[np.asarray(batch["user"])] @ weights
        scores = scores.toarray() if scipy.sparse.issparse(scores) else scores
        item = np.asarray(batch["item"])
        return scores[:, item[0]] if len(item) == 1 else np.take_along_axis(scores, item, axis=1)

    return Scorer(score, calibrated=False)


def best(
    candidates: Candidates, table: Table, k: int, max_users: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], Scorer]:
    """The options and the scorer with the highest NDCG@k on the validation split.

    Args:
      candidates: at least one.
      table: a prepared table of the ranking task.
      k: cut-off of the ranking.
      max_users: rank for so many users only; 0 for all.
      say: shows the result of each candidate.
    """
    found = None
    for options, candidate in candidates:
        ranked = evaluate.rank_users(candidate, table, "validation", max_users)
        quality = ranked.quality((k,))[f"ndcg@{k}"]
        say(f"validation ndcg@{k} {quality:.4f}: {options}")
        if found is None or quality > found[0]:
            found = quality, options, candidate
    assert found is not None, "there are no candidates"
    return found[1], found[2]

"""Recommenders of the same interaction matrix that train no network: EASE and item neighbours.

What they leave open (a regularisation, a number of neighbours, a weighting) is chosen by the full
ranking of the validation split; the test split is not looked at.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from cadc_jax.data.table import Table
from cadc_jax.evaluation import evaluate

EASE_ITEMS = 12_000  # items up to which their square in float64 is no burden
REGULARIZATIONS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
NEIGHBOURS = (20, 50, 100, 200, 400)
BM25 = ((1.2, 0.75), (100.0, 0.5))  # (K1, B): as usual for texts, and nearly without saturation

Candidates = Iterator[tuple[dict[str, Any], evaluate.Score]]


def matrix_of(table: Table) -> scipy.sparse.csr_matrix:
    """[U, I] float32, 1 where a training row is."""
    train, schema = table.splits["train"], table.schema
    ones = np.ones(len(train["user"]), np.float32)
    matrix = scipy.sparse.csr_matrix(
        (ones, (train["user"], train["item"])), shape=(schema.num_users, schema.num_items)
    )
    matrix.data[:] = 1  # repeats were added up
    return matrix


def ease(matrix: scipy.sparse.csr_matrix, regularization: float) -> np.ndarray:
    """Item-item weights B [I, I] float32 of EASE (Steck 2019, arXiv 1905.03375, eq. 8).

    They minimise |X - X B|^2 + regularization |B|^2 with a zero diagonal.
    """
    gram = (matrix.T @ matrix).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def ease_candidates(matrix: scipy.sparse.csr_matrix) -> Candidates:
    """Every regularisation and its scorer."""
    for regularization in REGULARIZATIONS:
        yield {"regularization": regularization}, scorer(matrix, ease(matrix, regularization))


def neighbour_candidates(matrix: scipy.sparse.csr_matrix) -> Candidates:
    """Item neighbours of the library `implicit`, by cosine and by BM25, and their scorers.

    Raises:
      ImportError: if it is not installed.
    """
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    for neighbours in NEIGHBOURS:
        models = [({"kind": "cosine"}, CosineRecommender(K=neighbours))]
        models += [
            ({"kind": "BM25", "K1": k1, "B": b}, BM25Recommender(K=neighbours, K1=k1, B=b))
            for k1, b in BM25
        ]
        for options, model in models:
            model.fit(matrix, show_progress=False)
            similarity = model.similarity.tocsr().astype(np.float32)
            yield options | {"K": neighbours}, scorer(matrix, similarity)


def scorer(matrix: scipy.sparse.csr_matrix, weights) -> evaluate.Score:
    """Scores of users by what their training items say: rows of X B, of dense or sparse B."""

    def score(batch) -> np.ndarray:
        scores = matrix[np.asarray(batch["user"])] @ weights
        scores = scores.toarray() if scipy.sparse.issparse(scores) else scores
        item = np.asarray(batch["item"])
        return scores[:, item[0]] if len(item) == 1 else np.take_along_axis(scores, item, axis=1)

    return score


def best(
    candidates: Candidates, table: Table, k: int, max_users: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], evaluate.Score]:
    """The candidate of highest NDCG@k on the validation split."""
    found = None
    for options, score in candidates:
        ranks = evaluate.ranks_full(score, table, "validation", max_users)
        quality = evaluate.of_ranks(ranks, k)[f"ndcg@{k}"]
        say(f"validation ndcg@{k} {quality:.4f}: {options}")
        if found is None or quality > found[0]:
            found = quality, options, score
    return found[1], found[2]

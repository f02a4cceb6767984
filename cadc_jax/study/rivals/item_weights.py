"""What one item says about another: item-item weights from training pairs.

Each function takes the matrix X [U, I] of 0 and 1 and returns weights B [I, I], by which users have
the scores X B.
"""

import warnings

import numpy as np
import scipy.sparse

_SWEEPS = 100  # over the weights of an item, at most
_CLOSE = 1e-3  # the duality gap that is small enough, as a share of an item's rows
_BLOCK = 1 << 24  # entries of a dense block of weights


def ease(matrix: scipy.sparse.csr_matrix, regularization: float) -> np.ndarray:
    """Item-item weights B of EASE (Steck 2019, arXiv 1905.03375, eq. 8).

    They minimise |X - X B|^2 + regularization |B|^2 with a zero diagonal.

    Args:
      matrix: X [U, I].
      regularization: above 0.

    Returns:
      [I, I] float32.
    """
    gram = _gram(matrix)
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def slim(matrix: scipy.sparse.csr_matrix, l1: float, l2: float) -> scipy.sparse.csr_matrix:
    """Sparse item-item weights W of SLIM (Ning and Karypis 2011, ICDM, eq. 3).

    They minimise |X - X W|^2 / 2 + l1 |W|_1 + l2 |W|^2 / 2 with W >= 0 and a zero diagonal, by
    coordinate descent on X'X.

    Args:
      matrix: X [U, I].
      l1: above 0.
      l2: above 0.

    Returns:
      [I, I] float32.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import enet_path

    gram = _gram(matrix)
    size = len(gram)
    no_rows = np.zeros((1, size))  # X'X has all that is known of them
    columns = []
    for item in range(size):
        own = gram[:, item].copy()
        gram[:, item] = gram[item, :] = 0  # an item must not predict itself
        others = own.copy()
        others[item] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # _SWEEPS are enough
            _, found, _ = enet_path(
                no_rows,
                np.sqrt(own[item : item + 1]),
                precompute=gram,
                Xy=others,
                l1_ratio=l1 / (l1 + l2),
                alphas=[l1 + l2],
                positive=True,
                check_input=False,
                tol=_CLOSE,
                max_iter=_SWEEPS,
            )
        gram[:, item] = gram[item, :] = own
        columns.append(scipy.sparse.csc_matrix(found, dtype=np.float32))
    return scipy.sparse.hstack(columns, format="csr")


def rp3beta(
    matrix: scipy.sparse.csr_matrix, alpha: float, beta: float, neighbours: int
) -> scipy.sparse.csr_matrix:
    """Weights of RP3beta (Paudel et al. 2017, ACM TiiS 7(1)): walks from item to user to item.

    The weight from i to j is the sum over users of (p_iu p_uj)^alpha, divided by n_j^beta: p are
    the probabilities of the steps of a random walk, and n_j is the number of users of item j.

    Args:
      matrix: X [U, I].
      alpha: above 0.
      beta: 0 or more; larger ones favour rare items.
      neighbours: how many weights each item i keeps, the largest ones.

    Returns:
      [I, I] float32.
    """
    of_users, of_items = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    steps = matrix.multiply(_power(of_users, -alpha)[:, None]).tocsr()  # user -> item
    back = matrix.T.multiply(_power(of_items, -alpha)[:, None]).tocsr()  # item -> user
    rarity = _power(of_items, -beta)
    size, kept = matrix.shape[1], []
    block = max(1, _BLOCK // size)
    for start in range(0, size, block):
        weights = (back[start : start + block] @ steps).toarray() * rarity
        rows = np.arange(len(weights))
        weights[rows, start + rows] = 0
        kept.append(_largest(weights, neighbours))
    return scipy.sparse.vstack(kept, format="csr").astype(np.float32)


def neighbours(
    matrix: scipy.sparse.csr_matrix, number: int, weighting: str
) -> scipy.sparse.csr_matrix:
    """Similarities of each item's nearest neighbours, as the library `implicit` computes them.

    Args:
      matrix: X [U, I].
      number: of neighbours.
      weighting: one of WEIGHTINGS.

    Returns:
      [I, I] float32.

    Raises:
      ImportError: if the library is not installed.
    """
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    constants = WEIGHTINGS[weighting]
    model = BM25Recommender(number, *constants) if constants else CosineRecommender(number)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Method expects CSR")  # the library warns about itself
        model.fit(matrix, show_progress=False)
    return model.similarity.tocsr().astype(np.float32)


WEIGHTINGS = {  # K1 and B of BM25: as usual for texts, and nearly without saturation
    "cosine": (),
    "BM25": (1.2, 0.75),
    "BM25, K1=100, B=0.5": (100.0, 0.5),
}


def _gram(matrix: scipy.sparse.csr_matrix) -> np.ndarray:
    """X'X [I, I] float64."""
    return np.ascontiguousarray((matrix.T @ matrix).toarray(), np.float64)


def _power(counts: np.ndarray, exponent: float) -> np.ndarray:
    """The power of counts; 0 where there are none."""
    found = np.zeros(len(counts))
    found[counts > 0] = counts[counts > 0] ** exponent
    return found


def _largest(weights: np.ndarray, number: int) -> scipy.sparse.csr_matrix:
    """The rows [n, I] with their `number` largest entries alone."""
    if number < weights.shape[1]:
        least = np.partition(weights, -number, axis=1)[:, -number]
        weights = np.where(weights >= least[:, None], weights, 0)
    return scipy.sparse.csr_matrix(weights)

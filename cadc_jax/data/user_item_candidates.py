"""Which columns of a click log may stand for the user and the item: evidence from training rows.

Collaborative structure is what two columns say about the click *together*, beyond what each says
alone. Three models of the click, in logits, are fitted on one half of the rows and scored on the
other half, then the other way round:

  additive:  b + a_u + c_v, every effect shrunk towards 0
  pair:      additive + d_uv, an effect of each combination, shrunk likewise
  low rank:  additive + <x_u, z_v>, as a factorisation sees it

What the second and the third save of the first's log loss estimates, from below, the mutual
information of the pair and the click beyond the single columns. It is in bits a row, and near 0 or
negative where there is none, unlike the estimate from counts, which grows with the number of
combinations. The low-rank saving, the *taste*, is what CADC can carry to combinations never seen.

The variances that effects are shrunk by come from the rows themselves (empirical Bayes), so there
is nothing to tune.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from cadc_jax.data import vocabulary
from cadc_jax.errors import ConfigError

CROSS = "*"  # between the columns of a cross: 'C1*C2'
ENOUGH = 5  # rows that say something about a user

_ERRORS = 2  # standard errors above zero that make evidence
_ADDITIVE_SWEEPS, _CELL_SWEEPS = 8, 3  # columns in turn need more than one alone
_RANK = 4  # enough to tell whether there is any taste
_VECTOR_SWEEPS = 8  # a few: the variances of weak tastes go on to shrink towards 0
_START = 0.3  # standard deviation of the vectors at the start
_LEGEND = (
    "mbit: thousandths of a bit a row saved on held-out rows, beyond the two columns alone, by an "
    "effect of each pair (pair) or by vectors, which carry over to unseen pairs (taste).",
    f"*: more than {_ERRORS} standard errors (+-) above zero; some of hundreds are luck, so look "
    "at the size. Counts are of the rows studied; the column of more values is called the user.",
)


@dataclasses.dataclass(frozen=True)
class Saving:
    """Held-out log loss saved by a model, in bits a row, and its standard error."""

    bits: float
    error: float

    @property
    def evident(self) -> bool:
        """Whether it is more than two standard errors above zero."""
        return self.bits > max(_ERRORS * self.error, 0)


@dataclasses.dataclass(frozen=True)
class Record:
    """What the rows say of one column as the user and another as the item.

    Attributes:
      user, item: names of columns, or of crosses ('C1*C2').
      users, items: distinct values, the sizes of the matrix.
      pairs: distinct combinations seen.
      rows: rows in all.
      median_rows_per_user: the mean is `rows / users`.
      enough: share of the users with at least `ENOUGH` rows.
      pair: saving of the pair model.
      taste: saving of the low-rank model.
    """

    user: str
    item: str
    users: int
    items: int
    pairs: int
    rows: int
    median_rows_per_user: float
    enough: float
    pair: Saving
    taste: Saving

    @property
    def density(self) -> float:
        """Share of the matrix that is seen."""
        return self.pairs / (self.users * self.items)

    @property
    def usefulness(self) -> tuple[float, float, float]:
        """What orders records: evident taste, then an evident pair effect, then the others."""
        taste, pair = (saving.bits if saving.evident else 0.0 for saving in (self.taste, self.pair))
        return taste, pair, self.pair.bits


def compare_pairs(
    label: np.ndarray,
    columns: Mapping[str, np.ndarray],
    candidates: Iterable[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Estimates what every two candidates say together, the most useful pair first.

    The candidate of more values is the user. Two candidates that share a column are no pair.

    Args:
      label: [N] 0 or 1, of training rows; 200,000 are enough for large effects.
      columns: name -> [N] int64 or unicode; 'missing' counts as a value.
      candidates: names of columns and of crosses such as 'C1*C2'; None: `candidate_columns`.
      seed: of the division into halves and of the start of the low-rank fit.
      progress: called with the pairs done and those to do.

    Returns:
      A record a pair.

    Raises:
      ConfigError: a candidate names a column that is not there.
      ValueError: labels other than 0 and 1, or all alike; a column of another length.
    """
    label = np.asarray(label)
    _check(label, columns)
    names = candidate_columns(columns) if candidates is None else list(dict.fromkeys(candidates))
    order = np.random.default_rng(seed).permutation(len(label))  # the halves are slices of this
    label = label[order].astype(np.float64)
    coded = {}
    for name in names:
        distinct, codes = np.unique(_column(columns, name), return_inverse=True)
        coded[name] = codes[order], len(distinct)
    pairs = [
        sorted(two, key=lambda name: -coded[name][1])
        for two in itertools.combinations(names, 2)
        if not set(two[0].split(CROSS)) & set(two[1].split(CROSS))
    ]

    def record(pair: Sequence[str]) -> Record:
        user, item = pair
        return _record(label, user, item, *coded[user], *coded[item], seed)

    records = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy frees the lock
        for done in pool.map(record, pairs):
            records.append(done)
            if progress:
                progress(len(records), len(pairs))
    return sorted(records, key=lambda record: record.usefulness, reverse=True)


def candidate_columns(columns: Mapping[str, np.ndarray], max_seen_once: float = 0.95) -> list[str]:
    """Names the columns that may stand for a user or an item.

    Args:
      columns: name -> [N] raw values.
      max_seen_once: the largest share of values that only one row has. Above it the column tells
        rows apart, not users.

    Returns:
      The names of columns with two or more values, in their order.
    """
    names = []
    for name, column in columns.items():
        counts = np.unique(column, return_counts=True)[1]
        if len(counts) > 1 and (counts == 1).mean() <= max_seen_once:
            names.append(name)
    return names


def table(records: Sequence[Record], top: int = 20) -> str:
    """The `top` first records as text: what the figures mean, the figures, and what to set."""
    header = ["user", "item", "users", "items", "seen pairs", "density %", "rows/user", "median"]
    header += ["rows/item", f"users >={ENOUGH} rows %", "pair mbit", "taste mbit"]
    lines = [header]
    for r in records[:top]:
        line = [r.user, r.item, f"{r.users:,}", f"{r.items:,}", f"{r.pairs:,}"]
        line += [f"{100 * r.density:.3g}", f"{r.rows / r.users:.1f}"]
        line += [f"{r.median_rows_per_user:g}", f"{r.rows / r.items:.1f}", f"{100 * r.enough:.0f}"]
        lines.append([*line, _millibits(r.pair), _millibits(r.taste)])
    return "\n".join([*_LEGEND, "", *_aligned(lines), "", _advice(records)])


def _check(label: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("labels must be 0 and 1, and both must occur")
    for name, column in columns.items():
        if len(column) != len(label):
            raise ValueError(f"column '{name}' has {len(column)} rows, the labels {len(label)}")


def _column(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns [N] the raw values of a column or a cross."""
    parts = name.split(CROSS)
    for part in parts:
        if part not in columns:
            raise ConfigError(
                f"no column '{part}' of the candidate '{name}'; there are {', '.join(columns)}"
            )
    return vocabulary.cross([columns[part] for part in parts])


def _record(
    label: np.ndarray,
    user: str,
    item: str,
    users: np.ndarray,
    num_users: int,
    items: np.ndarray,
    num_items: int,
    seed: int,
) -> Record:
    """Counts a pair and estimates its savings; `users` and `items` are [N] codes."""
    distinct, cells = np.unique(users * num_items + items, return_inverse=True)
    by_pair, by_taste = [], []
    for fit, score in _halves(len(label)):
        rate = label[fit].mean().clip(1e-6, 1 - 1e-6)
        base = np.full(len(label), np.log(rate / (1 - rate)))
        of_user, of_item = _effects(
            label[fit],
            base[fit],
            [users[fit], items[fit]],
            [num_users, num_items],
            _ADDITIVE_SWEEPS,
        )
        base += of_user[users] + of_item[items]
        (of_cell,) = _effects(label[fit], base[fit], [cells[fit]], [len(distinct)], _CELL_SWEEPS)
        vectors = _vectors(
            label[fit], base[fit], (users[fit], items[fit]), (num_users, num_items), seed
        )
        product = _products(vectors, (users[score], items[score]))
        product *= _scales(label[score], base[score], product)
        loss = _log_loss(label[score], base[score])
        by_pair.append(loss - _log_loss(label[score], base[score] + of_cell[cells[score]]))
        by_taste.append(loss - _log_loss(label[score], base[score] + product))
    counts = np.bincount(users, minlength=num_users)
    return Record(
        user=user,
        item=item,
        users=num_users,
        items=num_items,
        pairs=len(distinct),
        rows=len(label),
        median_rows_per_user=float(np.median(counts)),
        enough=float((counts >= ENOUGH).mean()),
        pair=_saving(by_pair),
        taste=_saving(by_taste),
    )


def _halves(rows: int) -> tuple[tuple[slice, slice], ...]:
    """Returns (rows to fit, rows to score), twice."""
    first, second = slice(0, rows // 2), slice(rows // 2, rows)
    return (first, second), (second, first)


def _saving(saved: list[np.ndarray]) -> Saving:
    bits = np.concatenate(saved) / np.log(2)
    return Saving(float(bits.mean()), float(bits.std() / np.sqrt(len(bits))))


def _effects(
    label: np.ndarray,
    offset: np.ndarray,
    codes: Sequence[np.ndarray],
    sizes: Sequence[int],
    sweeps: int,
) -> list[np.ndarray]:
    """Fits random effects of some columns, added to the offset, by one Newton step after another.

    Args:
      label: [n] 0 or 1.
      offset: [n] logits.
      codes: for each column, [n] integers below its size.
      sizes: of the columns.
      sweeps: Newton steps of each column.

    Returns:
      For each column [size] effects in logits: 0 for values that no row has.
    """
    logits = offset
    effects = [np.zeros(size) for size in sizes]
    for _ in range(sweeps):
        for place, (code, size) in enumerate(zip(codes, sizes, strict=True)):
            probability = _sigmoid(logits)
            weight = np.bincount(code, probability * (1 - probability), size)
            pull = np.bincount(code, label - probability, size) + weight * effects[place]
            variance = _variance(pull, weight)
            effect = pull * variance / (1 + weight * variance)
            logits = logits + (effect - effects[place])[code]
            effects[place] = effect
    return effects


def _variance(pull: np.ndarray, weight: np.ndarray) -> float:
    """Returns the variance of effects whose estimates, pull / weight, have errors of 1 / weight.

    The fixed point is its maximum-likelihood estimate: pull^2 has mean weight + variance weight^2,
    and every effect counts by the inverse square of that.
    """
    excess, square = pull**2 - weight, weight**2
    variance = 1.0
    for _ in range(10):
        trust = 1 / (1 + weight * variance)
        trust *= trust
        total = _dot(trust, square)
        variance = max(_dot(trust, excess) / total, 0.0) if total else 0.0
    return variance


def _vectors(
    label: np.ndarray,
    offset: np.ndarray,
    codes: tuple[np.ndarray, np.ndarray],
    sizes: tuple[int, int],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits offset + <x_u, z_v> to clicks by variational Bayes, a Gaussian for each vector.

    The logistic function is bounded by a parabola (Jaakkola and Jordan 2000), so that every vector
    is the solution of a linear system, as in ALS. The covariances of the other side's vectors and
    the variance of each dimension, estimated as the fit goes on, do what a tuned ridge would.

    Args:
      label: [n] 0 or 1.
      offset: [n] logits.
      codes: [n] integers below `sizes`, of users and of items.
      seed: of the start.

    Returns:
      The mean vectors [users, K] and [items, K], K = `_RANK`.
    """
    sums = [_sums_over_rows(*codes, sizes), _sums_over_rows(*codes[::-1], sizes[::-1])]
    seen = [np.bincount(code, minlength=size) > 0 for code, size in zip(codes, sizes, strict=True)]
    rng = np.random.default_rng(seed)
    means = [_START * rng.standard_normal((size, _RANK)) for size in sizes]
    squares = [_outer(mean) for mean in means]  # second moments
    variances = [np.ones(_RANK), np.ones(_RANK)]
    for _ in range(_VECTOR_SWEEPS):
        for side, other in ((0, 1), (1, 0)):
            bend = _parabola(offset + _products(means, codes))
            matrix = sums[side](bend, squares[other]).reshape(-1, _RANK, _RANK)
            covariance = np.linalg.inv(matrix + np.diag(1 / variances[side]))
            right = sums[side](label - 0.5 - bend * offset, means[other])
            means[side] = np.einsum("skl,sl->sk", covariance, right)
            squares[side] = _outer(means[side]) + covariance.reshape(-1, _RANK**2)
            variances[side] = squares[side][seen[side], :: _RANK + 1].mean(0)
    return means[0], means[1]


def _scales(label: np.ndarray, offset: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Returns [n] what to multiply the product of each row by, fitted to rows that are not it.

    Where rows are few the posterior means point the right way but are far too short. Every other
    row gives the one number that mends it for the rest.
    """
    scales = np.zeros(len(label))
    for apply in (0, 1):
        y, base, x = (array[1 - apply :: 2] for array in (label, offset, product))
        scale = 0.0
        for _ in range(6):  # Newton's method
            probability = _sigmoid(base + scale * x)
            bend = _dot(x**2, probability * (1 - probability))
            scale += _dot(x, y - probability) / bend if bend else 0.0
        scales[apply::2] = scale
    return scales


def _sums_over_rows(
    codes: np.ndarray, others: np.ndarray, sizes: tuple[int, int]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a function of weights [n] and vectors [other size, M], whose value [size, M] is the
    sum, over the rows of each code, of weight times the vector of the row's other code."""
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.bincount(codes, minlength=sizes[0]).cumsum()])
    others = others[order]

    def sums(weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return sparse.csr_array((weights[order], others, starts), sizes) @ vectors

    return sums


def _products(vectors: Sequence[np.ndarray], codes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns [n] <x_u, z_v> of each row."""
    return np.einsum("nk,nk->n", vectors[0][codes[0]], vectors[1][codes[1]])


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the inner product of two [n], without BLAS: its threads get in the way of ours."""
    return np.einsum("n,n->", a, b)


def _outer(vectors: np.ndarray) -> np.ndarray:
    """[s, K] -> [s, K * K], each vector times itself."""
    return (vectors[:, :, None] * vectors[:, None, :]).reshape(len(vectors), -1)


def _parabola(logits: np.ndarray) -> np.ndarray:
    """Returns the curvature of the parabola that touches the logistic loss at these logits."""
    size = np.maximum(np.abs(logits), 1e-6)
    return np.tanh(size / 2) / (2 * size)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _log_loss(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns [n] the loss of each row, in nats."""
    return np.logaddexp(0, logits) - label * logits


def _millibits(saving: Saving) -> str:
    star = "*" if saving.evident else " "
    return f"{1000 * saving.bits:.2f} +- {1000 * saving.error:.2f}{star}"


def _advice(records: Sequence[Record]) -> str:
    """How to put the first record into the configuration, if it is worth it."""
    savings = (records[0].taste, records[0].pair) if records else ()
    if not any(saving.evident for saving in savings):
        return "No pair says more than its two columns alone: CADC has nothing to gain from them."
    user, item = (tuple(name.split(CROSS)) for name in (records[0].user, records[0].item))
    advice = (
        "To use the first pair, set in the configuration file:\n"
        f"    config.data.user_features = {user}\n"
        f"    config.data.item_features = {item}"
    )
    luck = np.sqrt(2 * np.log(len(records)))  # about the largest of so many standard normals
    if not any(saving.evident and saving.bits > luck * saving.error for saving in savings):
        advice += f"\nThe best of {len(records)} pairs may be that good by luck: study more rows."
    return advice


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)  # names left, numbers right
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]

"""Finds columns of a click log that may serve as user and item, from evidence in training rows.

Two columns have collaborative structure if together they say more about the click than each says
alone. Three models of the click, in logits, are fitted on one half of the rows and scored on the
other half, then the other way round:

  additive:  b + a_u + c_v, every effect shrunk towards 0
  pair:      additive + d_uv, an effect of each combination, also shrunk
  low rank:  additive + <x_u, z_v>, as a factorisation models it

The log loss that the second and third models save over the first is a lower estimate of the mutual
information of the pair and the click beyond the single columns. It is in bits per row. Without
structure it is near 0 or negative, whereas an estimate from counts grows with the number of
combinations. The saving of the low-rank model, the *taste*, is what CADC can use for combinations
it has never seen.

The variances by which effects are shrunk are estimated from the rows (empirical Bayes), so there is
nothing to tune.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from cadc_jax.data import vocabulary
from cadc_jax.data.raw import Values, as_values
from cadc_jax.errors import ConfigError
from cadc_jax.runtime.text import aligned

CROSS = "*"  # between the columns of a cross: 'C1*C2'
ENOUGH_ROWS = 5  # rows of a user that are enough to learn something about it

_ERRORS = 2  # standard errors above zero that count as evidence
_ADDITIVE_SWEEPS, _PAIR_SWEEPS = 8, 3  # two alternating columns need more sweeps than one
_RANK = 4  # enough to tell whether there is any taste
_VECTOR_SWEEPS = 8  # few, because more would shrink the variances of weak tastes towards 0
_START = 0.3  # standard deviation of the initial vectors
_LEGEND = (
    "mbit: thousandths of a bit a row saved on held-out rows, beyond the two columns alone, by an "
    "effect of each pair (pair) or by vectors, which carry over to unseen pairs (taste).",
    f"*: more than {_ERRORS} standard errors (+-) above zero; some of hundreds are luck, so look "
    "at the size. Counts are of the rows studied; the column with more values is the user.",
)


@dataclasses.dataclass(frozen=True)
class Saving:
    """Held-out log loss that a model saves, in bits per row, and its standard error."""

    bits: float
    error: float

    @property
    def evident(self) -> bool:
        """Whether the saving is more than two standard errors above zero."""
        return self.bits > max(_ERRORS * self.error, 0)


@dataclasses.dataclass(frozen=True)
class Record:
    """Evidence for one column as the user and another one as the item.

    Attributes:
      user, item: names of columns, or of crosses ('C1*C2').
      users, items: numbers of distinct values, the sizes of the matrix.
      pairs: distinct combinations seen.
      rows: number of rows.
      median_rows_per_user: median number of rows of a user; the mean is `rows / users`.
      enough: share of the users with at least `ENOUGH_ROWS` rows.
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
        """Share of all combinations that is seen."""
        return self.pairs / (self.users * self.items)

    @property
    def usefulness(self) -> tuple[float, float, float]:
        """Sort key of records: evident taste first, then evident pair effects, then the others."""
        taste, pair = (saving.bits if saving.evident else 0.0 for saving in (self.taste, self.pair))
        return taste, pair, self.pair.bits


def compare_pairs(
    label: np.ndarray,
    columns: Mapping[str, Values],
    candidates: Iterable[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Estimates what every two candidates say about the click together, the most useful pair first.

    The candidate with more values is the user. Two candidates that share a column are not compared.

    Args:
      label: [N] 0 or 1, of training rows; 200,000 are enough for large effects.
      columns: name -> [N] raw values; 'missing' counts as a value.
      candidates: names of columns and of crosses such as 'C1*C2'; None: `candidate_columns`.
      seed: seed of the division into halves and of the initial vectors.
      progress: called with the numbers of pairs done and of all pairs.

    Returns:
      A record for each pair.

    Raises:
      ConfigError: if a candidate names an unknown column.
      ValueError: if labels are not 0 and 1 or do not differ, or a column has another length.
    """
    label = np.asarray(label)
    _check_rows(label, columns)
    names = candidate_columns(columns) if candidates is None else list(dict.fromkeys(candidates))
    order = np.random.default_rng(seed).permutation(len(label))  # halves are slices of this order
    label = label[order].astype(np.float64)
    candidates_coded = []
    for name in names:
        codes = _codes(_column(columns, name))
        candidates_coded.append(_Coded(name, codes[order], int(codes.max()) + 1))
    pairs = [
        sorted(two, key=lambda coded: -coded.size)
        for two in itertools.combinations(candidates_coded, 2)
        if not set(two[0].name.split(CROSS)) & set(two[1].name.split(CROSS))
    ]

    def record(pair: Sequence[_Coded]) -> Record:
        user, item = pair
        return _record(label, user, item, seed)

    records: list[Record] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases the GIL
        for done in pool.map(record, pairs):
            records.append(done)
            if progress:
                progress(len(records), len(pairs))
    return sorted(records, key=lambda record: record.usefulness, reverse=True)


def candidate_columns(columns: Mapping[str, Values], max_seen_once: float = 0.95) -> list[str]:
    """Names of the columns that may serve as a user or an item.

    Args:
      columns: name -> [N] raw values.
      max_seen_once: largest share of values that occur in one row only. With a larger share the
        column identifies rows rather than users.

    Returns:
      The names of such columns with two or more values, in their order.
    """
    names = []
    for name, column in columns.items():
        counts = np.bincount(_codes(column))
        if len(counts) > 1 and (counts == 1).mean() <= max_seen_once:
            names.append(name)
    return names


def table(records: Sequence[Record], top: int = 20, ids: Collection[str] = ()) -> str:
    """The first `top` records as text: a legend, the figures, and what to set.

    Args:
      records: as `compare_pairs` returns them.
      top: how many of them to show.
      ids: columns that are no categorical features, but the user or item ids of the log.
    """
    header = ["user", "item", "users", "items", "seen pairs", "density %", "rows/user", "median"]
    header += ["rows/item", f"users >={ENOUGH_ROWS} rows %", "pair mbit", "taste mbit"]
    lines = [header]
    for r in records[:top]:
        line = [r.user, r.item, f"{r.users:,}", f"{r.items:,}", f"{r.pairs:,}"]
        line += [f"{100 * r.density:.3g}", f"{r.rows / r.users:.1f}"]
        line += [f"{r.median_rows_per_user:g}", f"{r.rows / r.items:.1f}", f"{100 * r.enough:.0f}"]
        lines.append([*line, _millibits(r.pair), _millibits(r.taste)])
    names, *rows = aligned(lines, right=range(2, len(header)))
    rule = "-" * max(map(len, [names, *rows]))
    return "\n".join([*_LEGEND, "", names, rule, *rows, "", _advice(records, ids)])


def _check_rows(label: np.ndarray, columns: Mapping[str, Values]) -> None:
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("labels must be 0 and 1, and both must occur")
    for name, column in columns.items():
        if len(column) != len(label):
            raise ValueError(f"column '{name}' has {len(column)} rows, the labels {len(label)}")


def _codes(values: Values) -> np.ndarray:
    """The place of each raw value [N] among the sorted distinct ones: [N] integers."""
    values = as_values(values)
    if not isinstance(values, np.ndarray):
        values = vocabulary.of(values).ids(values)
    return np.unique(values, return_inverse=True)[1]


def _column(columns: Mapping[str, Values], name: str) -> Values:
    """Raw values [N] of a column or a cross."""
    parts = name.split(CROSS)
    for part in parts:
        if part not in columns:
            raise ConfigError(
                f"no column '{part}' of the candidate '{name}'; there are {', '.join(columns)}"
            )
    return vocabulary.cross([columns[part] for part in parts])


@dataclasses.dataclass(frozen=True)
class _Coded:
    """A candidate with its values as codes.

    Attributes:
      name: name of the column or cross.
      codes: [N] integers below `size`.
      size: number of distinct values.
    """

    name: str
    codes: np.ndarray
    size: int


def _record(label: np.ndarray, user: _Coded, item: _Coded, seed: int) -> Record:
    """Counts a pair and estimates its savings, from labels [N] in a random order."""
    distinct, codes = np.unique(user.codes * item.size + item.codes, return_inverse=True)
    pair = _Coded(f"{user.name}{CROSS}{item.name}", codes, len(distinct))
    first, second = slice(0, len(label) // 2), slice(len(label) // 2, len(label))
    saved = [
        _saved(label, user, item, pair, fit, score, seed)
        for fit, score in ((first, second), (second, first))
    ]
    by_pair, by_taste = zip(*saved, strict=True)
    counts = np.bincount(user.codes, minlength=user.size)
    return Record(
        user=user.name,
        item=item.name,
        users=user.size,
        items=item.size,
        pairs=pair.size,
        rows=len(label),
        median_rows_per_user=float(np.median(counts)),
        enough=float((counts >= ENOUGH_ROWS).mean()),
        pair=_saving(by_pair),
        taste=_saving(by_taste),
    )


def _saved(
    label: np.ndarray,
    user: _Coded,
    item: _Coded,
    pair: _Coded,
    fit: slice,
    score: slice,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses that the pair and the low-rank model save on each row of `score`, in nats.

    All models are fitted on the rows of `fit`.
    """
    rate = label[fit].mean().clip(1e-6, 1 - 1e-6)
    base = np.full(len(label), np.log(rate / (1 - rate)))
    codes, sizes = (user.codes[fit], item.codes[fit]), (user.size, item.size)
    of_user, of_item = _effects(label[fit], base[fit], codes, sizes, _ADDITIVE_SWEEPS)
    base += of_user[user.codes] + of_item[item.codes]
    (of_pair,) = _effects(label[fit], base[fit], [pair.codes[fit]], [pair.size], _PAIR_SWEEPS)
    vectors = _vectors(label[fit], base[fit], codes, sizes, seed)
    product = _products(vectors, (user.codes[score], item.codes[score]))
    product *= _scales(label[score], base[score], product)
    loss = _log_loss(label[score], base[score])
    by_pair = loss - _log_loss(label[score], base[score] + of_pair[pair.codes[score]])
    by_taste = loss - _log_loss(label[score], base[score] + product)
    return by_pair, by_taste


def _saving(saved: Sequence[np.ndarray]) -> Saving:
    """The mean of losses saved, given in nats, and its standard error, in bits."""
    bits = np.concatenate(saved) / np.log(2)
    return Saving(float(bits.mean()), float(bits.std() / np.sqrt(len(bits))))


def _effects(
    label: np.ndarray,
    offset: np.ndarray,
    codes: Sequence[np.ndarray],
    sizes: Sequence[int],
    sweeps: int,
) -> list[np.ndarray]:
    """Fits random effects of some columns, added to the offset, by Newton steps of each in turn.

    Args:
      label: [n] 0 or 1.
      offset: [n] logits.
      codes: for each column, [n] integers below its size.
      sizes: sizes of the columns.
      sweeps: Newton steps of each column.

    Returns:
      For each column, [size] effects in logits; 0 for values that no row has.
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
    """Estimates the variance of effects from pull / weight, their estimates of variance 1 / weight.

    The fixed point is the maximum-likelihood estimate: pull^2 has mean weight + variance weight^2,
    and each effect is weighted by the inverse square of this mean.
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
    """Fits offset + <x_u, z_v> to clicks by variational Bayes, with a Gaussian for each vector.

    A parabola bounds the logistic function (Jaakkola and Jordan 2000), which makes each vector the
    solution of a linear system, as in ALS. The covariances of the other side's vectors and the
    variance of each dimension, estimated during the fit, replace a tuned ridge.

    Args:
      label: [n] 0 or 1.
      offset: [n] logits.
      codes: [n] integers below `sizes`, of users and of items.
      sizes: numbers of users and of items.
      seed: seed of the initial vectors.

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
    """Factors [n] for the products of the rows, each fitted to other rows.

    With few rows the posterior means have the right direction but are far too short. One factor is
    fitted to every other row and applied to the remaining rows, and the other way round.
    """
    scales = np.zeros(len(label))
    for applied in (0, 1):
        y, base, x = (array[1 - applied :: 2] for array in (label, offset, product))
        scale = 0.0
        for _ in range(6):  # Newton's method
            probability = _sigmoid(base + scale * x)
            bend = _dot(x**2, probability * (1 - probability))
            scale += _dot(x, y - probability) / bend if bend else 0.0
        scales[applied::2] = scale
    return scales


def _sums_over_rows(
    codes: np.ndarray, others: np.ndarray, sizes: tuple[int, int]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function that sums weighted vectors over the rows of each code.

    Its arguments are weights [n] and vectors [other size, M]. Its value [size, M] is the sum of
    weight times the vector of the other code, over the rows of each code.
    """
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.bincount(codes, minlength=sizes[0]).cumsum()])
    others = others[order]

    def sums(weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return sparse.csr_array((weights[order], others, starts), sizes) @ vectors

    return sums


def _products(vectors: Sequence[np.ndarray], codes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """<x_u, z_v> of each row: [n]."""
    return np.einsum("nk,nk->n", vectors[0][codes[0]], vectors[1][codes[1]])


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two [n], without BLAS, whose threads would compete with ours."""
    return np.einsum("n,n->", a, b)


def _outer(vectors: np.ndarray) -> np.ndarray:
    """The outer product of each vector with itself: [s, K] -> [s, K * K]."""
    return (vectors[:, :, None] * vectors[:, None, :]).reshape(len(vectors), -1)


def _parabola(logits: np.ndarray) -> np.ndarray:
    """The curvature of the parabola that touches the logistic loss at these logits: [n]."""
    size = np.maximum(np.abs(logits), 1e-6)
    return np.tanh(size / 2) / (2 * size)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _log_loss(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The loss of each row in nats: [n]."""
    return np.logaddexp(0, logits) - label * logits


def _millibits(saving: Saving) -> str:
    """The saving and its error in thousandths of a bit, with a star for evidence."""
    star = "*" if saving.evident else " "
    return f"{1000 * saving.bits:.2f} +- {1000 * saving.error:.2f}{star}"


def _advice(records: Sequence[Record], ids: Collection[str]) -> str:
    """Says how to configure the first record, if there is evidence for it."""
    savings = (records[0].taste, records[0].pair) if records else ()
    if not any(saving.evident for saving in savings):
        return "No pair says more than its two columns alone: CADC has nothing to gain from them."
    advice = "To use the first pair, set in the configuration file:"
    for kind, name in (("user", records[0].user), ("item", records[0].item)):
        features = tuple(name.split(CROSS))
        if name in ids:
            advice += f"\n    config.data.columns.{kind} = {name!r}"
            features = ()  # which would replace the column
        advice += f"\n    config.data.{kind}_features = {features}"
    luck = np.sqrt(2 * np.log(len(records)))  # about the largest of as many standard normals
    if not any(saving.evident and saving.bits > luck * saving.error for saving in savings):
        advice += f"\nThe best of {len(records)} pairs may be that good by luck: study more rows."
    return advice

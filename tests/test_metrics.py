"""Metrics against scikit-learn, plain references, and values by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from cadc_jax import metrics, sharding


def pairwise_auc(labels, scores):
    """Share of (click, non-click) pairs in the right order, ties counted half."""
    click, other = scores[labels == 1][:, None], scores[labels == 0]
    return np.mean((click > other) + 0.5 * (click == other))


@pytest.mark.parametrize("levels", [2, 30, 10**6])  # few levels: many ties
def test_auc_equals_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    labels, scores = rng.integers(0, 2, 2000), rng.integers(0, levels, 2000) / levels
    expected = sklearn.metrics.roc_auc_score(labels, scores)
    assert float(metrics.auc(labels, scores)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=12))
def test_auc_is_the_share_of_pairs_in_order(rows):
    labels, scores = np.array(rows).T
    if labels.min() == labels.max():
        assert np.isnan(metrics.auc(labels, scores.astype(np.float32)))
    else:
        found = float(metrics.auc(labels, scores.astype(np.float32)))
        assert found == pytest.approx(pairwise_auc(labels, scores), abs=1e-6)


def test_the_standard_error_of_the_auc_is_the_spread_over_drawn_logs():
    rng = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(400):
        labels = (rng.random(300) < 0.2).astype(int)
        scores = np.round(rng.normal(labels, 1.5), 1)  # with ties
        found.append(pairwise_auc(labels, scores))
        errors.append(metrics.auc_standard_error(labels, scores))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.1)


def test_one_click_says_nothing_of_the_error_of_the_auc():
    assert np.isnan(metrics.auc_standard_error(np.array([0, 0, 1]), np.array([1.0, 2.0, 3.0])))


def test_auc_equals_values_by_hand():
    assert metrics.auc(jnp.array([0, 1, 0, 1]), jnp.array([0.1, 0.2, 0.3, 0.4])) == 0.75
    assert metrics.auc(jnp.array([0, 1]), jnp.array([5.0, 5.0])) == 0.5
    assert metrics.auc(jnp.array([0, 1]), jnp.array([1.0, 2.0])) == 1
    assert metrics.auc(jnp.array([0, 1]), jnp.array([2.0, 1.0])) == 0


def test_labels_of_the_auc_may_have_any_type():
    scores = jnp.array([0.1, 0.2, 0.3, 0.4])
    for kind in (bool, np.int8, np.int64, np.float32):
        assert metrics.auc(np.array([0, 1, 0, 1], kind), scores) == 0.75


def test_auc_counts_more_pairs_than_32_bits_hold():
    half = 70_000  # 4.9e9 pairs
    labels = np.repeat([0, 1], half)
    scores = np.concatenate([np.arange(half), np.arange(half)]).astype(np.float32)
    assert float(metrics.auc(labels, scores)) == pytest.approx(0.5, abs=1e-6)
    assert float(metrics.auc(labels, scores + labels * half)) == pytest.approx(1, abs=1e-6)


def test_auc_of_infinite_scores_follows_their_order():
    scores = jnp.array([-jnp.inf, jnp.inf, 0.2, 0.1])
    assert metrics.auc(jnp.array([0, 1, 0, 1]), scores) == 0.75


def test_auc_is_not_a_number_if_all_labels_are_equal():
    assert np.isnan(metrics.auc(jnp.array([1, 1]), jnp.array([0.0, 1.0])))
    assert np.isnan(metrics.auc(jnp.array([0, 0]), jnp.array([0.0, 1.0])))


def test_auc_is_not_a_number_if_a_score_is_not():
    """A model that has diverged must not look like a random one, or a better one."""
    labels = jnp.array([0, 1, 0, 1])
    assert np.isnan(metrics.auc(labels, jnp.full(4, jnp.nan)))
    assert np.isnan(metrics.auc(labels, jnp.array([0.1, jnp.nan, 0.2, 0.3])))


def stats_of(labels, scores, edges=None, block=None, weight=None):
    """Statistics merged over blocks of rows."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float32)
    weight = np.ones(len(labels)) if weight is None else weight
    edges = None if edges is None else np.sort(np.asarray(edges, np.float32))
    block = block or len(labels)
    found = [
        metrics.click_stats(
            labels[i : i + block], scores[i : i + block], weight[i : i + block], edges
        )
        for i in range(0, len(labels), block)
    ]
    return functools.reduce(metrics.merge, found)


def normal(rng, labels):
    return rng.normal(size=len(labels)) + labels


SCORES = {
    "random": normal,
    "skewed": lambda rng, labels: np.exp(4 * normal(rng, labels)),
    "tied": lambda rng, labels: np.round(normal(rng, labels), 1),
    "mostly tied": lambda rng, labels: np.maximum(normal(rng, labels), 1.5),
    "constant": lambda rng, labels: np.full(len(labels), -3.2),
    "large": lambda rng, labels: 1e30 * normal(rng, labels),
    "tiny": lambda rng, labels: 1e-30 * normal(rng, labels),
    "close": lambda rng, labels: 1 + 1e-5 * normal(rng, labels),
    "infinite": lambda rng, labels: np.where(rng.random(len(labels)) < 0.3, np.inf, -np.inf),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_streamed_auc_is_within_its_bound_of_scikit_learns(name):
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.1).astype(np.float32)
    scores = SCORES[name](rng, labels).astype(np.float32)
    value, error = stats_of(labels, scores, edges=scores[::20], block=3000).auc()
    finite = np.clip(scores, -1e38, 1e38)  # scikit-learn takes no infinity
    expected = sklearn.metrics.roc_auc_score(labels, finite.astype(np.float64))
    assert abs(value - expected) <= error + 1e-12
    assert error < 1 / 1000  # 1 / K, for any distribution


def test_the_streamed_auc_is_exact_if_every_score_is_an_edge_or_alone_in_its_bin():
    """Ties count half, as in the AUC itself."""
    labels = np.array([0, 1, 1, 0, 1, 0])
    scores = np.array([1.0, 1, 2, 2, 3, 0])
    for edges in ([0, 1, 2, 3], [3, 0, 1, 1, 2, 2, 2, 7], [1, 2]):  # alone: 0 and 3
        assert stats_of(labels, scores, edges).auc() == (pytest.approx(7 / 9), 0.0)


def test_the_bound_is_half_the_share_of_pairs_in_the_same_bin():
    labels, scores = np.array([1, 0, 0, 1, 0]), np.array([0.1, 0.2, 0.3, 0.6, 0.7])
    # Below 0.5: one click and two others; above: one each.
    value, error = stats_of(labels, scores, edges=[0.5]).auc()
    assert value == pytest.approx((2 / 2 + 2 + 1 / 2) / 6)
    assert error == pytest.approx((2 + 1) / 2 / 6)


def test_the_error_can_be_as_large_as_the_bound():
    low_first = stats_of([1, 0], [0.0, 1.0], edges=[])
    assert low_first.auc() == (0.5, 0.5)


numbers = st.one_of(
    st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf]),
    st.floats(width=32, allow_nan=False, allow_subnormal=False),
)


@given(
    st.lists(st.tuples(st.integers(0, 1), numbers), min_size=8, max_size=8),
    st.lists(numbers, min_size=4, max_size=4),
)
def test_the_streamed_auc_is_within_its_bound_for_any_scores_and_edges(rows, edges):
    labels, scores = (np.array(x) for x in zip(*rows, strict=True))
    value, error = stats_of(labels, scores, edges).auc()
    if labels.min() == labels.max():
        assert np.isnan(value) and np.isnan(error)
    else:
        assert abs(value - pairwise_auc(labels, scores)) <= error + 1e-12


def test_without_edges_the_bound_of_the_auc_is_a_half():
    assert stats_of([0, 1, 1], [0.0, 1.0, 2.0]).auc() == (0.5, 0.5)


def test_the_streamed_auc_is_not_a_number_if_a_score_is_not():
    for scores in ([np.nan, 1.0], [0.0, np.nan]):
        assert np.isnan(stats_of([0, 1], scores, edges=[0.5], block=1).auc()).all()


def test_log_loss_and_calibration_equal_those_of_scikit_learn_and_numpy():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 5000), rng.normal(size=5000) * 3 - 1
    probability = 1 / (1 + np.exp(-logits))
    for block in (None, 64):
        stats = stats_of(labels, logits, block=block)
        expected = sklearn.metrics.log_loss(labels, probability)
        assert stats.log_loss() == pytest.approx(expected, rel=1e-6)
        expected = probability.mean() / labels.mean()
        assert stats.calibration() == pytest.approx(expected, rel=1e-6)


def test_log_loss_and_calibration_equal_values_by_hand():
    stats = stats_of([1, 1, 0], np.log([1.0, 3.0, 3.0]))  # probabilities 1/2, 3/4 and 3/4
    assert stats.log_loss() == pytest.approx(-(np.log(1 / 2) + np.log(3 / 4) + np.log(1 / 4)) / 3)
    assert stats.calibration() == pytest.approx(1)


def test_log_loss_of_a_certain_mistake_is_finite():
    assert stats_of([1, 0], [-200.0, 400.0]).log_loss() == pytest.approx(300)


def test_log_loss_and_calibration_are_not_numbers_if_a_logit_is_not():
    stats = stats_of([1, 0, 1], [0.0, np.nan, 1.0], block=1)
    assert np.isnan(stats.log_loss()) and np.isnan(stats.calibration())


def test_calibration_is_not_a_number_without_a_click():
    assert np.isnan(stats_of([0, 0], [0.0, 1.0]).calibration())


def test_rows_of_weight_zero_do_not_count():
    labels, scores = np.array([0, 1, 1, 0]), np.array([0.3, 0.1, np.nan, np.inf])
    masked = stats_of(labels, scores, edges=[0.2], weight=np.array([1, 1, 0, 0]))
    jax.tree.map(np.testing.assert_array_equal, masked, stats_of(labels[:2], scores[:2], [0.2]))


def test_bfloat16_scores_are_summed_in_float32():
    labels = np.arange(4096) % 2
    scores = jnp.full(4096, 1.0, jnp.bfloat16)
    stats = metrics.click_stats(labels, scores)
    assert stats.calibration() == pytest.approx(2 / (1 + np.exp(-1)), rel=1e-6)


def test_counts_beyond_the_integers_of_float32_are_exact():
    one = stats_of([1, 0], [0.0, 0.0], edges=[0.0])
    many = jax.tree.map(lambda x: x * (1 << 24), one).replace(edges=one.edges)
    stats = functools.reduce(metrics.merge, [one] * 3, many)
    assert stats.clicks.sum() == stats.others.sum() == (1 << 24) + 3


def test_sums_beyond_the_integers_of_float32_are_exact():
    one = stats_of([1], [0.0]).replace(predicted=jnp.array([1.0, 0.0]))
    many = one.replace(predicted=jnp.array([2.0**24, 0.0]), clicks=one.clicks << 24)
    assert many.calibration() == 1
    stats = many
    for _ in range(101):
        stats = metrics.merge(stats, one.replace(clicks=0 * one.clicks))
    assert stats.calibration() == 1 + 101 / 2**24


def test_rows_split_over_eight_devices_count_as_on_one():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 4096), rng.normal(size=4096).astype(np.float32)
    weight = (np.arange(4096) < 4000).astype(np.float32)
    edges = np.sort(scores[:100])
    one = metrics.click_stats(labels, scores, weight, edges)
    split = sharding.named(sharding.make_mesh(), sharding.BATCH)
    eight = metrics.click_stats(*jax.device_put((labels, scores, weight), split), edges)
    assert len(eight.clicks.sharding.device_set) == 8
    assert eight.auc() == one.auc()
    assert eight.log_loss() == pytest.approx(one.log_loss(), rel=1e-6)
    assert eight.calibration() == pytest.approx(one.calibration(), rel=1e-6)
    merged = metrics.merge(eight, eight)
    np.testing.assert_array_equal(merged.others, 2 * one.others)


def test_hit_rate_counts_ranks_before_the_cut():
    assert metrics.hit_rate(np.array([0, 9, 10, 500]), 10) == 0.5
    assert metrics.hit_rate(np.array([0, 1]), 1) == 0.5


def test_ndcg_equals_values_by_hand():
    assert float(metrics.ndcg(np.array([0]), 1)) == 1
    assert float(metrics.ndcg(np.array([1]), 2)) == pytest.approx(1 / np.log2(3))
    assert float(metrics.ndcg(np.array([2]), 2)) == 0
    assert float(metrics.ndcg(np.array([0, 2, 6, 10]), 10)) == pytest.approx(
        (1 + 1 / 2 + 1 / 3) / 4
    )


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_ndcg_equals_scikit_learns(k):
    scores = np.random.default_rng(0).normal(size=(50, 30))
    relevant = np.zeros_like(scores)
    relevant[:, 4] = 1
    ranks = np.sum(scores > scores[:, 4:5], axis=1)
    expected = sklearn.metrics.ndcg_score(relevant, scores, k=k)
    assert float(metrics.ndcg(ranks, k)) == pytest.approx(expected, rel=1e-5)


# Metrics of users.


def rankings(rows, num_items=100):
    """Of (user, item, rank) rows."""
    user, item, ranks = np.array(rows).T
    return metrics.UserRankings.of_ranks(ranks, user, item, num_items)


# User 7: 3 items at places 0, 2 and 11. User 9: 1 item at place 4. User 8: none is ever found.
THREE = rankings([(7, 1, 10), (9, 5, 4), (7, 2, 0), (8, 0, 100), (7, 3, 1), (8, 0, 100)])


def test_places_are_ranks_and_the_users_own_better_items():
    assert THREE.users.tolist() == [7, 8, 9] and THREE.held_out.tolist() == [3, 2, 1]
    assert THREE.rows.tolist() == [2, 4, 0, 3, 5, 1]
    never = metrics.NEVER
    assert THREE.place.tolist() == [0, 2, 12, never, never, 4]


def test_metrics_of_users_equal_values_by_hand():
    assert THREE.recall(10) == pytest.approx([2 / 3, 0, 1])
    assert THREE.recall(13) == pytest.approx([1, 0, 1])
    assert THREE.hit(3).tolist() == [1, 0, 0]
    gain = {place: 1 / np.log2(place + 2) for place in range(5)}
    ideal = gain[0] + gain[1] + gain[2]
    assert THREE.ndcg(10) == pytest.approx([(gain[0] + gain[2]) / ideal, 0, gain[4]])
    assert THREE.ndcg(2) == pytest.approx([gain[0] / (gain[0] + gain[1]), 0, 0])
    assert THREE.average_precision(10) == pytest.approx([(1 + 2 / 3) / 3, 0, 1 / 5])
    assert THREE.average_precision(2) == pytest.approx([1 / 2, 0, 0])
    assert THREE.reciprocal_rank() == pytest.approx([1, 0, 1 / 5])


def test_a_miss_is_no_hit_even_if_the_list_is_shorter_than_the_cut_off():
    few = rankings([(1, 0, 5), (1, 2, 3)], num_items=5)
    assert few.recall(50) == [1 / 2] and few.place.tolist() == [3, metrics.NEVER]


def test_rows_of_users_that_were_not_drawn_and_repeats_of_an_item_count_nowhere():
    found = rankings([(1, 5, -1), (2, 6, 0), (2, 6, 0), (2, 7, 0), (3, 6, 0)])
    assert found.users.tolist() == [2, 3] and found.held_out.tolist() == [2, 1]
    assert found.rows.tolist() == [1, 3, 4] and found.place.tolist() == [0, 1, 0]


def test_with_one_item_a_user_the_metrics_are_those_of_rows():
    ranks = np.random.default_rng(0).integers(0, 60, 500)
    found = rankings(np.stack([np.arange(500), np.ones(500, int), ranks], axis=1))
    for k in (1, 10, 30):
        assert found.ndcg(k).mean() == pytest.approx(float(metrics.ndcg(ranks, k)), abs=1e-7)
        hits = float(metrics.hit_rate(ranks, k))
        assert found.recall(k).mean() == found.hit(k).mean() == pytest.approx(hits, abs=1e-7)

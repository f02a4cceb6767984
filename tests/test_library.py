"""The public functions, on plain arrays."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

import cadc_jax as cadc
from cadc_jax.errors import ConfigError
from cadc_jax.factorization.factors import scores

USERS, ITEMS = 60, 40
CONFIG = cadc.ALSConfig(factors=4, regularization=1.0, iterations=5)
TRAIN = cadc.TrainConfig(batch_rows=64, negatives=3, max_evaluations=2)


def log(seed=0):
    """Positives of a planted taste: user [N], item [N], shuffled; the last 60 are held out."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(USERS, 3)) @ rng.normal(size=(3, ITEMS))
    user, item = np.nonzero(taste + 0.3 * rng.normal(size=taste.shape) > 1.0)
    order = rng.permutation(len(user))
    user, item = user[order], item[order]
    return (user[:-60], item[:-60]), {"user": user[-60:], "item": item[-60:]}


def trained(**changes):
    (user, item), held_out = log()
    kept = cadc.sample(len(user), 0.5)
    given = {
        "network": cadc.TwoTower(hidden=(8,)),
        "rows": {"user": user[kept], "item": item[kept]},
        "validation": held_out,
        "config": TRAIN,
        "factors": cadc.factorize(user, item, USERS, ITEMS, CONFIG),
        "rate": 0.5,
        "seen": (user, item),
    }
    return cadc.train(**(given | changes))


def test_the_sample_is_that_of_the_rule():
    ids = cadc.sample(10_000, 0.1, seed=3)
    np.testing.assert_array_equal(
        ids, np.flatnonzero(cadc.sampling.keep(np.arange(10_000), 0.1, 3))
    )


def test_frozen_embeddings_are_the_factors_up_to_scale():
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, CONFIG)
    model = trained()
    for name in ("user", "item"):
        table, given = np.asarray(model.tables[name]), np.asarray(getattr(factors, name))
        np.testing.assert_allclose(table, given / np.sqrt(np.mean(given**2)), rtol=1e-3, atol=1e-6)


def test_a_network_over_logistic_factors_starts_with_their_scores():
    (user, item), held_out = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, cadc.SGDConfig(factors=4, epochs=5))
    still = cadc.TrainConfig(batch_rows=64, negatives=3, learning_rate=0.0, max_evaluations=1)
    model = trained(factors=factors, config=still, logits=True)
    expected = scores(factors, held_out["user"], held_out["item"])
    np.testing.assert_allclose(cadc.score(model, held_out), expected, rtol=1e-4, atol=1e-5)


def test_an_autoencoder_factorises_values_and_keeps_its_encoder():
    (user, item), _ = log()
    config = cadc.AutoencoderConfig(factors=4, regularization=5.0)
    value = np.where(item % 2, 1.0, 0.5)
    factors = cadc.factorize(user, item, USERS, ITEMS, config, value=value)
    matrix = np.zeros((USERS, ITEMS))
    matrix[user, item] = value
    np.testing.assert_allclose(factors.user, matrix @ np.asarray(factors.encoder), atol=1e-4)
    assert trained(factors=factors).tables["user"].shape == (USERS, 4)


@pytest.mark.parametrize("config", [cadc.ALSConfig(), cadc.AutoencoderConfig()])
def test_methods_of_positives_alone_refuse_labels(config):
    (user, item), _ = log()
    with pytest.raises(ConfigError, match="positives only: .* or use an SGDConfig"):
        cadc.factorize(user, item, USERS, ITEMS, config, label=np.ones(len(user)))


@pytest.mark.parametrize("embeddings", ["trainable", "random"])
def test_other_embeddings_are_trained(embeddings):
    frozen, model = trained(), trained(embeddings=embeddings)
    assert len(model.history) > 1
    same = np.asarray(model.tables["user"]).shape == np.asarray(frozen.tables["user"]).shape
    assert (
        not same
        or model.best_step == 0
        or not np.allclose(model.tables["user"], frozen.tables["user"])
    )


def test_training_ends_with_the_best_validation_result():
    model = trained()
    best = max(model.history, key=lambda entry: entry["validation"])
    assert best["step"] == model.best_step
    assert best["validation"] > 0.3  # of planted taste; chance is about 0.12 among 39


def test_recommended_items_are_the_best_unseen_ones():
    model, ((user, item), _) = trained(), log()
    users = np.array([5, 7])
    logits, items = cadc.recommend(model, users, k=4, seen=(user, item))
    for row, u in enumerate(users):
        pairs = {"user": np.full(ITEMS, u), "item": np.arange(ITEMS)}
        scores = cadc.score(model, pairs)
        scores[item[user == u]] = -np.inf
        np.testing.assert_array_equal(items[row], np.argsort(-scores)[:4])
        np.testing.assert_allclose(logits[row], np.sort(scores)[::-1][:4], rtol=1e-5)


# Users from outside.


def test_a_user_from_outside_has_the_vector_of_a_known_user_with_the_same_items():
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, cadc.AutoencoderConfig(factors=6))
    lists = [item[user == known] for known in (3, 8)]
    new = cadc.fold_in(factors, lists)
    np.testing.assert_allclose(new.factors.user, factors.user[np.array([3, 8])], atol=1e-5)
    known = cadc.recommend(factors, np.array([3, 8]), k=5, seen=(user, item))
    for found, expected in zip(cadc.recommend(factors, new, k=5), known, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_frozen_model_takes_users_from_outside_as_it_takes_its_own():
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, cadc.AutoencoderConfig(factors=6))
    model = trained(factors=factors)
    new = cadc.fold_in(factors, [item[user == 5]])
    logits, ids = cadc.recommend(model, new, k=6)
    expected, best = cadc.recommend(model, np.array([5]), k=6, seen=(user, item))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    assert ids.tolist() == best.tolist()


def test_als_folds_in_by_the_equations_of_its_last_iteration():
    (user, item), _ = log()
    config = cadc.ALSConfig(factors=4, iterations=40)
    factors = cadc.factorize(user, item, USERS, ITEMS, config)
    new = cadc.fold_in(factors, [item[user == 7]], config, pairs=(user, item))
    np.testing.assert_allclose(new.factors.user[0], factors.user[7], rtol=0.02, atol=1e-3)
    assert repr(new) == "NewUsers(1 users)" and len(new) == 1
    assert not set(cadc.recommend(factors, new, k=8)[1][0]) & set(item[user == 7])


def test_explicit_als_folds_in_ratings():
    (user, item), _ = log()
    stars = 3 + (user + item) % 3
    config = cadc.ALSConfig(factors=2, feedback="explicit", regularization=0.1, iterations=40)
    factors = cadc.factorize(user, item, USERS, ITEMS, config, value=stars)
    own = user == 7
    new = cadc.fold_in(factors, [item[own]], config, pairs=(user, item), values=[stars[own]])
    np.testing.assert_allclose(new.factors.user_bias[0], factors.user_bias[7], atol=0.02)
    with pytest.raises(ConfigError, match="values: explicit feedback needs the ratings"):
        cadc.fold_in(factors, [[1]], config, pairs=(user, item))


@pytest.mark.parametrize(
    ("lists", "changes", "message"),
    [
        ([[1], []], {}, r"new_users\[1\]: has no item"),
        ([[1, 2, 1]], {}, r"new_users\[0\]: item 1 is there twice"),
        ([[1, ITEMS]], {}, f"item {ITEMS} is not among the {ITEMS} items"),
        ([["tea"]], {}, r"new_users\[0\]: ids must be whole numbers"),
        ([[1]], {"pairs": None}, "pairs: ALS needs user and item of the rows"),
        ([[1]], {"values": [[1.0, 2.0]]}, "values: must have a number for each item"),
        ([[1]], {"config": cadc.SGDConfig()}, "logistic SGD does not tell"),
        ([[1]], {"config": cadc.AutoencoderConfig()}, "factors have no encoder"),
    ],
)
def test_users_that_cannot_be_folded_in_are_named(lists, changes, message):
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, CONFIG)
    with pytest.raises(ConfigError, match=message):
        cadc.fold_in(factors, lists, **({"pairs": (user, item)} | changes))


def test_items_that_the_map_does_not_know_are_refused():
    (user, item), _ = log()
    items = cadc.IdMap.of([f"film {k}" for k in range(ITEMS)])
    factors = cadc.factorize(user, item + 1, USERS, len(items), CONFIG)
    ids = items.ids(["film 3", "another"])
    with pytest.raises(ConfigError, match="item 0 had no row when the factors were made"):
        cadc.fold_in(factors, [ids], CONFIG, pairs=(user, item + 1))


def test_a_model_with_embeddings_of_its_own_takes_nobody_from_outside():
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, CONFIG)
    new = cadc.fold_in(factors, [[1, 2]], CONFIG, pairs=(user, item))
    with pytest.raises(ConfigError, match="train it with embeddings='frozen'"):
        cadc.recommend(trained(embeddings="trainable"), new, k=3)
    with pytest.raises(ConfigError, match="users from outside bring their own items"):
        cadc.recommend(trained(), new, k=3, seen=(user, item))


# Similar items.


def test_similar_items_have_the_largest_cosines():
    (user, item), _ = log()
    factors = cadc.factorize(user, item, USERS, ITEMS, CONFIG)
    cosines, ids = cadc.similar_items(factors, [4, 9], k=3)
    table = np.asarray(factors.item)
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    every = table[[4, 9]] @ table.T
    every[[0, 1], [4, 9]] = -np.inf
    np.testing.assert_array_equal(ids, np.argsort(-every, axis=1)[:, :3])
    np.testing.assert_allclose(cosines, -np.sort(-every, axis=1)[:, :3], rtol=1e-5)
    assert cadc.similar_items(trained(), [4, 9], k=3)[1].tolist() == ids.tolist()


def test_an_item_without_rows_is_similar_to_none():
    factors = cadc.Factors(np.ones((2, 2)), np.array([[1.0, 0], [0, 0], [-1, 1], [2, 1]]))
    cosines, ids = cadc.similar_items(factors, [0], k=3)
    assert ids.tolist() == [[3, 2, -1]] and cosines[0, 2] == -np.inf
    with pytest.raises(ConfigError, match="the vector of item 1 is 0"):
        cadc.similar_items(factors, [1], k=2)
    with pytest.raises(ConfigError, match="items: 4 is not among the 4 items"):
        cadc.similar_items(factors, [4], k=2)
    with pytest.raises(ConfigError, match="k=4: must be between 1 and the 3 items"):
        cadc.similar_items(factors, [0], k=4)


def test_an_embedding_that_was_trained_is_what_is_compared():
    model = trained(embeddings="random")
    table = np.asarray(model.tables["item"])
    cosines, _ = cadc.similar_items(model, [4], k=ITEMS - 1)
    length = np.linalg.norm(table, axis=1)
    expected = np.delete(table[4] @ table.T / length / length[4], 4)
    np.testing.assert_allclose(cosines[0], -np.sort(-expected), rtol=1e-4, atol=1e-6)


def test_rows_with_labels_and_features():
    rng = np.random.default_rng(0)
    rows = {
        "user": rng.integers(0, USERS, 500),
        "item": rng.integers(0, ITEMS, 500),
        "dense": rng.normal(size=(500, 2)),
        "categorical": rng.integers(0, 3, (500, 2)),
    }
    rows["label"] = (rows["dense"][:, 0] + rows["categorical"][:, 1] > 1).astype(float)
    factors = cadc.factorize(
        *(rows["user"], rows["item"], USERS, ITEMS, cadc.SGDConfig(factors=4, epochs=1)),
        label=rows["label"],
    )
    model = cadc.train(
        cadc.DLRM(embedding_dim=4, bottom=(8,), top=(16,)),
        {name: x[:400] for name, x in rows.items()},
        {name: x[400:] for name, x in rows.items()},
        cadc.TrainConfig(batch_rows=40, learning_rate=0.01, max_evaluations=15),
        factors=factors,
        vocabulary_sizes=(3, 3),
        embedding_dim=4,
    )
    held_out = {name: x[400:] for name, x in rows.items() if name != "label"}
    assert cadc.metrics.auc(rows["label"][400:], cadc.score(model, held_out)) > 0.8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embeddings": "fixed"}, "embeddings='fixed': must be one of"),
        ({"factors": None}, "needs factors"),
        ({"rate": 0}, "rate=0: must be above 0"),
        ({"factors": None, "embeddings": "random"}, "num_users and num_items"),
        ({"config": cadc.TrainConfig()}, "negatives=0: rows without labels need some"),
        ({"rows": {"user": [1, 2], "item": [1]}}, "item has 1 rows, and user 2"),
        ({"rows": {"user": [1], "item": [1], "clicks": [1]}}, "no column 'clicks'"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        trained(**changes)


def test_every_public_name_is_there_and_none_is_imported_before_its_use():
    for name in cadc.__all__:
        assert getattr(cadc, name) is not None
        assert name in dir(cadc)
    code = "import sys, cadc_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cadc.nothing  # noqa: B018


def test_a_sparse_matrix_is_factorised_as_its_rows():
    (user, item), _ = log()
    value = np.where(item % 2, 1.0, 0.5)
    matrix = scipy.sparse.csr_matrix((value, (user, item)), shape=(USERS, ITEMS))
    found = cadc.factorize(matrix, config=CONFIG)
    expected = cadc.factorize(user, item, USERS, ITEMS, CONFIG, value=value)
    np.testing.assert_allclose(
        found.user @ found.item.T, expected.user @ expected.item.T, atol=1e-3
    )
    with pytest.raises(ConfigError, match="has the items and the values"):
        cadc.factorize(matrix, item)


def test_texts_get_ids():
    users = cadc.IdMap.of(["ann", "bob", "ann", "eve"])
    items = cadc.IdMap.of(["tea", "jam", "jam", "tea"])
    user, item = users.ids(["ann", "bob", "ann", "eve"]), items.ids(["tea", "jam", "jam", "tea"])
    factors = cadc.factorize(user, item, len(users), len(items), CONFIG)
    assert (len(factors.user), len(factors.item)) == (4, 3)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (np.array(["a", "b"]), r"user: ids must be whole numbers, not <U1; cadc.IdMap.of"),
        (np.array([0.5, 1.0]), "user: ids must be whole numbers, not float64"),
        (np.zeros((2, 1), int), r"user: must be a column \[N\] of ids, not of shape \(2, 1\)"),
    ],
)
def test_what_is_no_column_of_ids_is_refused(user, message):
    with pytest.raises(ConfigError, match=message):
        cadc.factorize(user, np.array([1, 2]), 5, 5)
    with pytest.raises(ConfigError, match=message):
        trained(rows={"user": user, "item": np.array([1, 2])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": {"user": [], "item": []}}, "validation: has no row"),
        ({"factors": (np.ones((USERS, 2)), np.ones((ITEMS, 2)))}, r"cadc.Factors\(user, item\)"),
        ({"rows": {"user": [1, 2]}}, "rows have no column 'item'"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        trained(**changes)


def test_the_number_of_ids_is_asked_for():
    with pytest.raises(ConfigError, match="num_users and num_items: say how many"):
        cadc.factorize(np.array([1]), np.array([1]))


def test_results_are_shown_in_a_line():
    model = trained()
    assert "validation 0." in repr(model) and len(repr(model)) < 300 and "\n" not in repr(model)
    factors = cadc.Factors(np.ones((5, 2)), np.ones((3, 2)))
    assert repr(factors) == "Factors(user (5, 2), item (3, 2))"


def test_the_package_lists_its_public_names_alone():
    assert dir(cadc) == sorted([*cadc.__all__, "__version__"])

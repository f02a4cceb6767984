import itertools

import numpy as np

from cadc_jax.data import negatives, pipeline, sampling

ROWS = {
    "user": np.arange(10, dtype=np.int32),
    "item": np.arange(10, dtype=np.int32) + 100,
    "label": np.arange(10, dtype=np.float32) % 2,
    "dense": np.zeros((10, 2), np.float32),
    "categorical": np.arange(30, dtype=np.int32).reshape(10, 3),
}
POSITIVES = {name: x for name, x in ROWS.items() if name != "label"}
SAMPLER = pipeline.NegativeSampling(
    3, np.unique(negatives.pair_keys(ROWS["user"], ROWS["item"], 200)), 200
)


def take(count, rows=ROWS, batch_rows=4, seed=0, **options):
    return list(
        itertools.islice(pipeline.training_batches(rows, batch_rows, seed, **options), count)
    )


def test_sampled_ids_are_those_the_rule_keeps_across_ranges():
    num_rows = 2 * pipeline.RANGE + 17
    ids = np.concatenate(list(pipeline.sampled_ids(num_rows, 0.01, 5).as_numpy_iterator()))
    np.testing.assert_array_equal(ids, np.flatnonzero(sampling.keep(np.arange(num_rows), 0.01, 5)))


def test_an_epoch_holds_every_row_once_and_is_filled_up_with_weight_0():
    batches = take(pipeline.steps_per_epoch(10, 4))
    assert len(batches) == 3
    assert all(batch["user"].shape == (4,) and batch["item"].shape == (4, 1) for batch in batches)
    weight = np.concatenate([batch["weight"] for batch in batches])
    user = np.concatenate([batch["user"] for batch in batches])
    assert weight.sum() == 10
    assert sorted(user[weight > 0]) == list(range(10))


def test_columns_of_a_row_stay_together():
    for batch in take(3):
        np.testing.assert_array_equal(batch["item"][:, 0], batch["user"] + 100)
        np.testing.assert_array_equal(batch["categorical"][:, 0], batch["user"] * 3)
        np.testing.assert_array_equal(batch["label"][:, 0], batch["user"] % 2)


def test_the_stream_can_start_at_any_step():
    for rows, sampler in ((ROWS, None), (POSITIVES, SAMPLER)):
        whole, resumed = take(9, rows, sampler=sampler), take(4, rows, start=5, sampler=sampler)
        for expected, got in zip(whole[5:], resumed, strict=True):
            assert expected.keys() == got.keys()
            for name in expected:
                np.testing.assert_array_equal(expected[name], got[name])


def test_each_positive_comes_first_among_its_fresh_negatives():
    first, second = take(3, POSITIVES, sampler=SAMPLER), take(6, POSITIVES, sampler=SAMPLER)[3:]
    for batch in first + second:
        assert batch["item"].shape == batch["label"].shape == (4, 4)
        np.testing.assert_array_equal(batch["item"][:, 0], batch["user"] + 100)
        assert np.all(batch["item"][:, 1:] != batch["user"][:, None] + 100)
        np.testing.assert_array_equal(batch["label"], [[1, 0, 0, 0]] * 4)

    def negatives_of(batches):
        return {
            int(u): tuple(i[1:]) for b in batches for u, i in zip(b["user"], b["item"], strict=True)
        }

    a, b = negatives_of(first), negatives_of(second)
    assert all(a[user] != b[user] for user in a)  # another epoch draws others

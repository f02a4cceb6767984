import pytest

from cadc_jax.run.arms import ARMS, BASELINES, FACTOR_TABLES, TRAINED


def test_arms_are_the_ones_of_the_documented_results():
    assert list(ARMS) == [
        "popularity",
        "mf_alone",
        "mf_refreshed",
        "full",
        "sample",
        "cadc_frozen",
        "cadc_trainable",
    ]
    assert {**BASELINES, **TRAINED} == ARMS
    assert all(name == arm.name for name, arm in ARMS.items())


@pytest.mark.parametrize(
    "name, sample, factors, embeddings",
    [
        ("full", False, False, "random"),
        ("sample", True, False, "random"),
        ("cadc_frozen", True, True, "frozen"),
        ("cadc_trainable", True, True, "trainable"),
    ],
)
def test_an_arm_says_what_it_is_trained_on(name, sample, factors, embeddings):
    arm = ARMS[name]
    assert (arm.takes_sample, arm.takes_factors, arm.embeddings) == (sample, factors, embeddings)


def test_the_factors_themselves_are_arms_without_a_network():
    assert [name for name, arm in ARMS.items() if arm.is_factors] == ["mf_alone", "mf_refreshed"]


def test_only_tables_that_come_from_factors_are_frozen():
    for arm in ARMS.values():
        assert arm.frozen <= arm.from_factors <= FACTOR_TABLES

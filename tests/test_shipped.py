from cadc_jax import shipped


def test_each_use_of_a_configuration_that_comes_along_is_a_new_copy():
    assert {"criteo", "epinions", "movielens_1m"} <= set(shipped.configs())
    shipped.config("criteo").rate = 0.123
    assert shipped.config("criteo").rate == 0.1

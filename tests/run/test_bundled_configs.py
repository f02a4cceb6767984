from cadc_jax.run import bundled_configs


def test_each_use_of_a_configuration_that_comes_along_is_a_new_copy():
    assert {"criteo", "epinions", "movielens_1m"} <= set(bundled_configs.configs())
    bundled_configs.config("criteo").rate = 0.123
    assert bundled_configs.config("criteo").rate == 0.1

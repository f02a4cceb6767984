"""Sweeps: which values they have, of which type, and what cannot be swept."""

import pytest

from cadc_jax import configuration
from cadc_jax.errors import ConfigError
from cadc_jax.study import sweeps

CONFIG = configuration.default_config()


def test_all_combinations_are_variants_with_a_name():
    found = sweeps.variants(["config.als.factors=32,64", "config.als.alpha=1, 5.5"], CONFIG)
    assert found == {
        "als.factors=32, als.alpha=1": {"als.factors": 32, "als.alpha": 1.0},
        "als.factors=32, als.alpha=5.5": {"als.factors": 32, "als.alpha": 5.5},
        "als.factors=64, als.alpha=1": {"als.factors": 64, "als.alpha": 1.0},
        "als.factors=64, als.alpha=5.5": {"als.factors": 64, "als.alpha": 5.5},
    }


def test_without_a_sweep_there_is_one_variant_without_a_name():
    assert sweeps.variants([], CONFIG) == {"": {}}


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("als.regularization=1,1e-3", [1.0, 0.001]),
        ("config.train.batch_rows=64", [64]),
        ("config.factorization=als,autoencoder+als", ["als", "autoencoder+als"]),
        ("config.two_tower.hidden=(),(64,),(128,64)", [(), (64,), (128, 64)]),
        ("config.data.log_dense=true,False", [True, False]),
        ("config.evaluation.k=(10,),20", [(10,), 20]),
        ("config.data.tfds_name='a,b',c", ["a,b", "c"]),
    ],
)
def test_values_have_the_type_of_their_field(sweep, values):
    found = [value for one in sweeps.variants([sweep], CONFIG).values() for value in one.values()]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["config.als.factors"], "write config.FIELD=VALUE,VALUE"),
        (["config.als.factors= "], "write config.FIELD=VALUE,VALUE"),
        (["config.als.factor=3"], "no such field to sweep, did you mean 'config.als.factors'?"),
        (["config.als=3"], "no such field to sweep"),
        (["config.name=a,b"], "no such field to sweep"),
        (["config.als.factors=0.5"], "'0.5' is no value of the type int"),
        (["config.als.factors=True"], "'True' is no value of the type int"),
        (["config.data.log_dense=1"], "'1' is no value of the type bool"),
        (["config.two_tower.hidden=64"], "'64' is no value of the type tuple"),
        (["config.rate=0.1,0.2"], "a study has a flag for it, --rates"),
        (["config.seed=1,2"], "a study has a flag for it, --seeds"),
        (["als.factors=1", "config.als.factors=2"], "the field als.factors is swept twice"),
    ],
)
def test_what_cannot_be_swept_is_named(given, why):
    with pytest.raises(ConfigError) as error:
        sweeps.variants(given, CONFIG)
    assert why in str(error.value) and str(error.value).startswith("--sweep=")

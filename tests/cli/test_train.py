"""The flags of `cadc train`, which need no configuration file."""

import pytest
from absl import flags
from absl.testing import flagsaver

from cadc_jax import experiment
from cadc_jax.cli import train
from cadc_jax.errors import ConfigError
from cadc_jax.run import compressed
from tests.small_runs import click_config, quiet


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def test_flags_change_the_configuration_of_the_data_set_and_nothing_else():
    config = click_config()
    with flagsaver.flagsaver(arms=["sample", "cadc_trainable"], models=["dcn"], seed=3):
        changed = train._changed(config)
    assert changed.arms == ("sample", "cadc_trainable")
    assert changed.models == ("dcn",) and changed.seed == 3
    config.arms, config.models, config.seed = changed.arms, changed.models, 3
    assert changed.to_dict() == config.to_dict()


def test_without_flags_it_is_the_configuration_of_the_data_set():
    assert train._changed(click_config()).to_dict() == click_config().to_dict()


def test_an_arm_on_all_rows_cannot_be_trained_from_a_data_set():
    with flagsaver.flagsaver(arms=["full"]):
        with pytest.raises(ConfigError, match="--arms=full: trains on all rows, which a"):
            train._changed(click_config())


@pytest.mark.parametrize("given", [{"arms": ["cadc"]}, {"models": ["bert"]}, {"seed": -1}])
def test_values_are_checked_as_those_of_a_file_are(given):
    with flagsaver.flagsaver(**given):
        with pytest.raises(ConfigError, match=f"^{next(iter(given))}="):
            train._changed(click_config())


def test_another_seed_trains_anew_on_the_same_sample(click_run, tmp_path):
    given = compressed.open_compressed(click_run.parent / "compressed")
    for seed in (0, 1):
        with flagsaver.flagsaver(seed=seed):
            experiment.train_from(
                experiment.Run(train._changed(given.config), tmp_path, quiet), given
            )
    counts = {stage: len(list((tmp_path / stage).iterdir())) for stage in ("sample", "train")}
    assert counts == {"sample": 1, "train": 2}

import pathlib
import runpy

import pytest

from cadc_jax import configuration
from cadc_jax.errors import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_named_after_its_file(path):
    config = runpy.run_path(path)["get_config"]()
    configuration.validate(config)
    configuration.prepare_config(config)
    configuration.train_config(config)
    for model in config.models:
        configuration.make_model(config, model)
    assert config.name == path.stem


def changed(**fields):
    config = configuration.default_config()
    config.train.negatives = 4
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_rate_outside_its_range_is_named(rate):
    with pytest.raises(ConfigError, match=f"rate={rate}.*above 0 and at most 1"):
        configuration.validate(changed(rate=rate))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ("full", "cadc")}, "arms='cadc': must be one of full"),
        ({"models": ("mlp",)}, "models='mlp': must be one of dlrm, dcn, two_tower"),
        ({"data__source": "csv"}, "data.source='csv'"),
        ({"data__task": "rank"}, "data.task='rank'"),
        ({"data__split": "last"}, "data.split='last'"),
        ({"factorization": "svd"}, "factorization='svd'"),
        (
            {"factorization": "sgd", "data__split": "users"},
            "factorization='sgd': with data.split='users'",
        ),
        ({"factor_rows": "sampled"}, "factor_rows='sampled': must be one of all, unsampled"),
        ({"factor_rows": "unsampled", "rate": 1.0}, "rate=1 leaves no such row"),
        ({"train__loss": "hinge"}, "train.loss='hinge'"),
        ({"train__negatives_from": "none"}, "negatives_from='none': must be one of all, unlikely"),
        ({"train__batch_rows": 0}, "train.batch_rows=0"),
        ({"train__batch_rows": 64, "train__negatives": 10**7}, "train.negatives=10000000: a batch"),
        ({"train__negatives": 0}, "ranking task needs at least 1"),
        ({"data__task": "click"}, "rows have labels; set it to 0"),
        ({"data__task": "click", "train__loss": "softmax"}, "'softmax' needs the ranking task"),
        ({"train__loss": "in_batch"}, "negatives=4: the loss 'in_batch' draws none"),
        (
            {"train__loss": "in_batch", "train__negatives": 0, "models": ("dlrm",)},
            "needs models=",
        ),
        (
            {"train__loss": "in_batch", "train__negatives": 0, "train__microbatch_rows": 64},
            "train.microbatch_rows=0",
        ),
        ({"train__label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"als__factors": 0}, "factors=0"),
        ({"checkpoints__seconds": -1.0}, "checkpoints.seconds=-1.0: must be at least 0"),
        ({"checkpoints__seconds": float("nan")}, "checkpoints.seconds=nan"),
        ({"checkpoints__keep": 1}, "checkpoints.keep=1: must be at least 2"),
        ({"train__learning_rate": -1.0}, "train.learning_rate=-1.0: must be at least 0"),
        ({"data__synthetic_rows": -5}, "data.synthetic_rows=-5: must be at least 0"),
        ({"data__max_vocabulary": -1}, "data.max_vocabulary=-1: must be at least 0"),
        ({"evaluation__k": 0}, "evaluation.k=0: must be at least 1"),
        ({"als__solver": "cholesky"}, "als.solver='cholesky': is now called 'exact'"),
        ({"name": "../../x"}, r"name='../../x': must start with a letter"),
        ({"name": "/tmp/x"}, "it names a folder"),
        ({"name": ""}, "it names a folder"),
        ({"seed": 2**64 - 1}, r"seed=\d+: must be at least 0 and below 2\*\*63"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"data__seed": -2}, "data.seed=-2: must be -1, or from 0"),
        ({"data__path": "hdfs://b/log"}, "data.path=hdfs://b/log: hdfs:// is not supported"),
        ({"two_tower__hidden": (64, 0)}, r"two_tower.hidden=\(64, 0\): must be at least 1"),
        ({"dlrm__embedding_dim": 0}, "dlrm.embedding_dim=0: must be at least 1"),
        ({"dcn__dropout": 1.0}, r"dcn.dropout=1.0: must be in \[0, 1\)"),
        ({"random_start": (("rate", 0.5),)}, "random_start: 'rate' is no field of train, dlrm"),
        ({"random_start": (("train.l3", 0.5),)}, "random_start=.*: must be pairs of a field"),
        ({"random_start": ("train.l2", 0.5)}, "random_start=.*: must be pairs of a field"),
        ({"random_start": (("train.l2", -0.5),)}, "train.l2=-0.5: must be at least 0"),
    ],
)
def test_a_value_that_cannot_work_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        configuration.validate(changed(**fields))


def test_the_loss_in_the_batch_goes_with_two_towers_and_no_negatives():
    """The same settings are refused for another network, or with negatives: see above."""
    config = changed(train__loss="in_batch", train__negatives=0)
    configuration.validate(config)
    assert configuration.train_config(config).loss == "in_batch"


@pytest.mark.parametrize(("assigned", "found"), [(20, (20,)), ((20, 10), (20, 10)), ([5], (5,))])
def test_cut_offs_may_be_one_number_or_several(assigned, found):
    config = changed(evaluation__k=assigned)
    configuration.validate(config)
    assert configuration.evaluation_config(config).k == found


def test_raw_data_is_looked_for_in_the_data_folder_unless_a_path_is_given(monkeypatch):
    monkeypatch.setenv("CADC_DATA_DIR", "/data")
    assert configuration.raw_path(changed(data__folder="ml-1m")) == pathlib.Path("/data/ml-1m")
    given = changed(data__folder="ml-1m", data__path="/elsewhere")
    assert configuration.raw_path(given) == pathlib.Path("/elsewhere")


def test_without_the_variable_raw_data_is_looked_for_in_the_current_folder(monkeypatch):
    monkeypatch.delenv("CADC_DATA_DIR", raising=False)
    assert configuration.raw_path(changed(data__folder="ml-1m")) == pathlib.Path("data/ml-1m")


@pytest.mark.parametrize("name", ["als", "sgd", "train", "dlrm", "dcn", "two_tower", "evaluation"])
def test_a_section_has_the_defaults_of_its_dataclass(name):
    config = configuration.default_config()
    if name in configuration.METHODS:
        made = configuration.factorization_config(config, name)
    else:
        classes = {"train": configuration.TrainConfig, "evaluation": configuration.EvaluationConfig}
        made = (configuration.MODELS | classes)[name](**config[name])
    plain = type(made)()
    assert made == plain


# Numbers that a search chooses.


def test_without_a_number_the_regularisation_and_the_confidence_are_searched():
    config = configuration.default_config()
    assert configuration.automatic(config, "als") == ("regularization", "alpha")
    assert configuration.automatic(config, "autoencoder") == ("regularization",)
    assert configuration.automatic(config, "sgd") == ()
    config.als.regularization = 0.5
    assert configuration.automatic(config, "als") == ("alpha",)
    config.als.feedback = "explicit"  # has no confidence
    assert configuration.automatic(config, "als") == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"als__regularization": "automatic"}, "regularization='automatic': must be a number, or"),
        ({"als__alpha": True}, "als.alpha=True: must be a number, or 'auto'"),
        ({"sgd__regularization": None}, "sgd.regularization=None: must be a number, or 'auto'"),
        ({"als__regularization": 0}, "als.regularization=0: must be above 0"),
    ],
)
def test_anything_else_than_a_number_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        configuration.validate(changed(**fields))


def test_numbers_take_the_place_of_auto_and_of_nothing_else():
    config = changed(als__alpha=3)
    found = configuration.with_numbers(config, {"als": {"regularization": 0.5, "alpha": 7.0}})
    assert (found.als.regularization, found.als.alpha) == (0.5, 3)
    assert config.als.regularization == "auto"
    settings = configuration.factorization_settings(found)
    assert configuration.made_by(config, settings) and configuration.made_by(found, settings)
    assert configuration.with_numbers_of(config, settings).als.regularization == 0.5
    assert not configuration.made_by(changed(als__alpha=3, als__regularization=0.6), settings)


def test_factors_side_by_side_are_found_again_without_their_numbers():
    config = changed(factorization="autoencoder+als")
    numbers = {"als": {"regularization": 0.5, "alpha": 7.0}, "autoencoder": {"regularization": 2.0}}
    settings = configuration.factorization_settings(configuration.with_numbers(config, numbers))
    assert configuration.made_by(config, settings)
    assert configuration.with_numbers_of(config, settings).autoencoder.regularization == 2.0
    assert not configuration.made_by(changed(factorization="als"), settings)


def test_the_data_may_have_a_seed_of_their_own():
    config = configuration.default_config()
    config.seed = 3
    assert configuration.prepare_config(config).seed == 3
    config.data.seed = 0
    assert configuration.prepare_config(config).seed == 0

"""The configuration of a run: its defaults, its checks, and the settings of each part.

All code below `run` takes plain arguments or its own dataclass, not a `ConfigDict`.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.errors import ConfigError, check_at_least, check_choice
from cadc_jax.evaluation.evaluate import EvaluationConfig
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.interactions import VALUE_SCALES
from cadc_jax.factorization.quantization import check_bits
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.models.dcn import DCN
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.run.arms import TRAINED
from cadc_jax.runtime import storage
from cadc_jax.runtime.checkpoints import CheckpointConfig
from cadc_jax.runtime.storage import AnyPath, Remote
from cadc_jax.runtime.text import one_line
from cadc_jax.training.placement import DeviceConfig
from cadc_jax.training.step import DRAWN, TrainConfig

FORMATS = ("table", "adjacency")
SOURCES = ("criteo", "movielens", "tabular", "tfds")
MODELS: Mapping[str, type[DLRM] | type[DCN] | type[TwoTower]] = {
    "dlrm": DLRM,
    "dcn": DCN,
    "two_tower": TwoTower,
}
FACTOR_ROWS = ("all", "unsampled")
RANDOM_START = ("train", "dlrm", "dcn", "two_tower")
Factorization = ALSConfig | AutoencoderConfig | SGDConfig
METHODS: Mapping[str, type[Factorization]] = {
    "als": ALSConfig,
    "autoencoder": AutoencoderConfig,
    "sgd": SGDConfig,
}
AUTO = "auto"  # in place of a number: `run.tune` chooses it
AUTOMATIC: Mapping[str, tuple[str, ...]] = {  # fields that may be AUTO
    "als": ("regularization", "alpha"),
    "autoencoder": ("regularization",),
    "sgd": ("regularization",),
}


def default_config() -> ConfigDict:
    """Every field there is, with defaults. The files in `configs/` start from it."""
    config = ConfigDict()
    config.name = "default"  # name of the run's folder and of the report
    config.seed = 0  # seed of everything random, but see data.seed
    config.rate = 0.1  # share of the training rows that the sample keeps, in (0, 1]
    config.models = ("two_tower",)  # any of 'dlrm', 'dcn' and 'two_tower'
    config.arms = tuple(TRAINED)  # what to compare

    data = config.data = ConfigDict()
    data.source = "tabular"  # 'criteo', 'movielens', 'tabular' or 'tfds'
    data.path = ""  # the raw file or folder; empty: `folder` inside $CADC_DATA_DIR (tfds: its own)
    data.folder = ""
    data.task = "ranking"  # 'ranking' (positives only) or 'click' (labels 0 and 1)
    # leave_one_out, last_share, order, time, random, users or given; see docs/data.md
    data.split = "leave_one_out"
    data.seed = -1  # seed of the split and of the items to rank against; -1: `seed`
    data.validation = 0.1  # share of rows (users: of users), for all but leave_one_out and given
    data.test = 0.1
    # What a value (data.columns.value; the sum of a pair's repeats) counts for in implicit ALS
    # and the autoencoder: 'linear' (itself), 'log' (log(1 + value)) or 'none' (all rows count 1).
    data.value_scale = "linear"
    data.min_value = 0.0  # rows of a lower value are no positives; 0: all are. See docs/data.md
    data.min_user_rows = 0  # users, and items, of fewer rows in the log are left out (k-core)
    data.min_item_rows = 0
    data.min_count = 1  # training rows a value needs for an id of its own
    data.user_features = ()  # columns that name the user, where there is no user id
    data.item_features = ()
    data.log_dense = False  # log(1 + x) of dense features, for counts
    data.num_negatives = 99  # K of the '1 + K' ranking protocol
    data.max_malformed = 0.0  # share of malformed rows to leave out before giving up
    data.max_vocabulary = 0  # a column with more values is hashed to so many ids; 0: never
    data.block_bytes = 1 << 23  # raw text decoded at a time on each core; bounds memory
    data.synthetic_rows = 200_000  # criteo: rows made up where there is no file; 0: an error
    data.tfds_name = ""  # tfds: name of the data set, such as 'movielens/100k-ratings'
    data.variant = ""  # movielens: '100k', '1m' or '10m'
    # tabular: files inside the folder. criteo with split='given': names of the files that validate
    # and test, * stands for anything. tfds: names of splits, several joined by +.
    data.train_file = ""  # tabular: also a folder, or a pattern such as 'part-*.parquet'
    data.validation_file = ""
    data.test_file = ""
    data.format = "table"  # tabular: 'table', or 'adjacency': lines 'user item item ...'
    data.negatives_file = ""  # tabular: items to rank each test row's item against
    data.columns = ConfigDict(  # tabular, tfds: what the columns are; see data/readers/tabular.py
        dict(
            user="user_id",
            item="item_id",
            label="",
            value="",
            timestamp="",
            dense=(),
            categorical=(),
            separator="",
            header=(),
        )
    )
    content = dict(
        file="",
        format="table",
        id="id",
        dense=(),
        categorical=(),
        title="",
        separator="",
        header=(),
    )
    data.user_content = ConfigDict(content)  # tabular: files of user and item content
    data.item_content = ConfigDict(content | dict(bags=()))

    # 'als', 'autoencoder' or 'sgd', each with a section of settings; or several side by side, such
    # as 'autoencoder+als', with weights that the validation split chooses.
    config.factorization = "als"
    # Rows whose factors a frozen arm trains on: 'all', or 'unsampled', all rows except the sample.
    # Factors score the rows they come from too well, and a model that trains on the same rows
    # learns to trust them too much. In both cases it predicts with the factors of all rows, and a
    # trainable arm starts from these.
    config.factor_rows = "all"
    # Bits of an entry of the factors: 2 to 8 (integers with a scale a row), 16 or 32.
    config.factor_bits = 8
    # Of AUTOMATIC the fields may be 'auto': a search on the validation split then chooses them.
    for method, settings in METHODS.items():
        section = config[method] = ConfigDict(_fields_of(settings))
        for name in AUTOMATIC[method]:
            default = AUTO if method != "sgd" else section[name]
            section[name] = FieldReference(default, field_type=object)
    config.train = ConfigDict(_fields_of(TrainConfig))
    config.dlrm = ConfigDict(_fields_of(DLRM))  # its embedding_dim holds for all models' features
    config.dcn = ConfigDict(_fields_of(DCN))
    config.two_tower = ConfigDict(_fields_of(TwoTower))
    # Other values of fields of RANDOM_START, (name, value) pairs, for the arms whose embeddings
    # start at random: what suits factors rarely suits these. They win over the command line's.
    config.random_start = ()

    config.devices = ConfigDict(_fields_of(DeviceConfig))
    config.checkpoints = ConfigDict(_fields_of(CheckpointConfig))
    config.evaluation = ConfigDict(_fields_of(EvaluationConfig))
    # A tuple, or a number alone: a field of the type `object` takes both.
    cut_offs = config.evaluation.k
    config.evaluation.k = FieldReference(cut_offs, field_type=object)
    config.log = ConfigDict()
    config.log.tensorboard = False  # write scalars of training to <workdir>/logs
    config.log.profile = False  # write a jax.profiler trace of one interval of steps there
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Checks everything that can be checked before any work.

    Each section checks its own fields when it is made; here is what concerns several of them.

    Raises:
      ConfigError: naming the field, its value and what it may be.
    """
    if not 0 < config.rate <= 1:
        raise ConfigError(
            f"rate={config.rate}: must be above 0 and at most 1, the share of training rows to "
            "keep (0.1 keeps 10 %)"
        )
    _check_finite(config)
    folder_name(config)
    raw_path(config)
    if not 0 <= config.seed < 1 << 63:
        raise ConfigError(f"seed={config.seed}: must be at least 0 and below 2**63")
    if not -1 <= config.data.seed < 1 << 63:
        raise ConfigError(f"data.seed={config.data.seed}: must be -1, or from 0 to below 2**63")
    check_choice("data.source", config.data.source, SOURCES)
    check_choice("data.format", config.data.format, FORMATS)
    check_choice("data.value_scale", config.data.value_scale, VALUE_SCALES)
    check_at_least("data.block_bytes", config.data.block_bytes, 1)
    check_at_least("data.synthetic_rows", config.data.synthetic_rows, 0)
    _check_factorization(config)
    check_choice("factor_rows", config.factor_rows, FACTOR_ROWS)
    check_bits("factor_bits", config.factor_bits)
    if config.factor_rows == "unsampled" and config.rate == 1:
        raise ConfigError("factor_rows='unsampled': rate=1 leaves no such row; lower the rate")
    for name, allowed in (("models", MODELS), ("arms", TRAINED)):
        if isinstance(config[name], str):
            raise ConfigError(
                f"{name}={config[name]!r}: write a tuple, such as ('{config[name]}',)"
            )
        for value in config[name]:
            check_choice(name, value, allowed)
    prepare_config(config)
    for method in methods(config):
        factorization_config(config, method)
    train_config(config)
    for name in MODELS:
        make_model(config, name)
    evaluation_config(config)
    checkpoint_config(config)
    device_config(config)
    _check_task(config)
    if config.random_start:
        validate(of_random_start(config))


def of_random_start(config: ConfigDict) -> ConfigDict:
    """The configuration of the arms whose embeddings start at random.

    Raises:
      ConfigError: if `random_start` names a field that it cannot set.
    """
    if not config.random_start:
        return config
    own = config.copy_and_resolve_references()
    own.random_start = ()
    try:
        changes = dict(config.random_start)
        if wrong := [name for name in changes if name.split(".")[0] not in RANDOM_START]:
            raise ConfigError(
                f"random_start: {wrong[0]!r} is no field of {', '.join(RANDOM_START)}"
            )
        own.update_from_flattened_dict(changes)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"random_start={config.random_start!r}: must be pairs of a field and a value, such as "
            f"(('train.l2', 0.001),) ({one_line(error)})"
        ) from None
    return own


def _check_factorization(config: ConfigDict) -> None:
    names = methods(config)
    for name in names:
        check_choice("factorization", name, METHODS)
    for method, fields in AUTOMATIC.items():
        for name in fields:
            value = config[method][name]
            if value != AUTO and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"{method}.{name}={value!r}: must be a number, or {AUTO!r}")
    if len(names) > 1:
        explicit = config.als.feedback == "explicit" and "als" in names
        if len(set(names)) < len(names) or "sgd" in names or explicit:
            raise ConfigError(
                f"factorization={config.factorization!r}: side by side there may be implicit 'als' "
                "and 'autoencoder', each once"
            )
        if config.data.task != "ranking":
            raise ConfigError(
                f"factorization={config.factorization!r}: only the ranking task takes several"
            )


def _check_finite(config: ConfigDict, prefix: str = "") -> None:
    """Raises ConfigError if a number is infinite or NaN, which no setting means and JSON lacks."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{name}={value}: must be a finite number")


def _check_task(config: ConfigDict) -> None:
    """Raises ConfigError if the loss, the negatives or the source do not go with the task."""
    ranking, loss = config.data.task == "ranking", config.train.loss
    if loss != "bce" and not ranking:
        raise ConfigError(f"train.loss={loss!r} needs the ranking task; use 'bce' for labels")
    draws = ranking and loss in DRAWN
    if draws != (config.train.negatives > 0):
        if draws:
            why = "the ranking task needs at least 1"
        elif ranking:
            why = f"the loss {loss!r} draws none; set it to 0"
        else:
            why = "rows have labels; set it to 0"
        raise ConfigError(f"train.negatives={config.train.negatives}: {why}")
    if ranking and not draws:
        if set(config.models) != {"two_tower"} or config.train.microbatch_rows:
            raise ConfigError(
                f"train.loss={loss!r} scores every user of a batch with every item: it needs "
                "models=('two_tower',), which does so in one product, and train.microbatch_rows=0"
            )
    if ranking and (config.data.columns.label or config.data.source == "criteo"):
        raise ConfigError("rows with labels (data.columns.label, criteo) need data.task='click'")
    if not ranking and config.data.source == "movielens" and not config.data.min_value:
        raise ConfigError(
            "data.source='movielens' has no labels: it needs data.task='ranking', or "
            "data.min_value to make labels of the ratings"
        )
    if config.data.split == "users" and "sgd" in methods(config):
        raise ConfigError(
            f"factorization={config.factorization!r}: with data.split='users' the vectors of "
            "held-out users are computed from their known rows: use 'als' or 'autoencoder'"
        )


def data_seed(config: ConfigDict) -> int:
    """Seed of what the prepared table draws: its split, and items to rank against."""
    return config.data.seed if config.data.seed >= 0 else config.seed


def prepare_config(config: ConfigDict) -> PrepareConfig:
    """Settings of `prepare`."""
    names = {field.name for field in dataclasses.fields(PrepareConfig)} - {"seed"}
    settings = {name: config.data[name] for name in names}
    return PrepareConfig(**settings, seed=data_seed(config))


def methods(config: ConfigDict) -> tuple[str, ...]:
    """Names of the factorisations of a configuration."""
    return tuple(config.factorization.split("+"))


def factorization_config(config: ConfigDict, method: str) -> Factorization:
    """Settings of one factorisation, a key of METHODS; what is 'auto' has the default number."""
    return METHODS[method](**{name: x for name, x in config[method].items() if x != AUTO})


def automatic(config: ConfigDict, method: str) -> tuple[str, ...]:
    """The settings of a factorisation that are 'auto' and mean something."""
    explicit = method == "als" and config.als.feedback == "explicit"
    unused = ("alpha",) if explicit else ()
    return tuple(x for x in AUTOMATIC[method] if config[method][x] == AUTO and x not in unused)


def with_numbers(config: ConfigDict, numbers: Mapping[str, Mapping[str, float]]) -> ConfigDict:
    """A copy of the configuration, with numbers in place of 'auto'.

    Args:
      config: the configuration.
      numbers: method -> setting -> number.
    """
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # without its references 'auto' is a string
        for method, found in numbers.items():
            for name in automatic(config, method):
                config[method][name] = found[name]
    return config


def with_numbers_of(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """`with_numbers` of `factorization_settings` that `made_by` accepts."""
    names, own = methods(config), settings["config"]
    return with_numbers(config, own if len(names) > 1 else {names[0]: own})


def factorization_settings(config: ConfigDict) -> dict[str, Any]:
    """Everything in a configuration that the factors depend on, except rows, bits and the seed.

    Fields that are 'auto' are left out.
    """
    names = methods(config)
    own = {name: _settings_of(config, name) for name in names}
    chosen = own if len(names) > 1 else own[names[0]]
    return {"method": config.factorization, "config": chosen, **scale_settings(config)}


def scale_settings(config: ConfigDict) -> dict[str, str]:
    """`value_scale`, if the factors depend on it: not if values are targets, or not used."""
    explicit = config.factorization == "als" and config.als.feedback == "explicit"
    unused = config.data.task == "click" or config.factorization == "sgd" or explicit
    scale = config.data.value_scale
    return {} if unused or scale == "none" else {"value_scale": scale}


def _settings_of(config: ConfigDict, method: str) -> dict[str, Any]:
    numbers = dataclasses.asdict(factorization_config(config, method))
    own = {name: numbers[name] if x == AUTO else x for name, x in config[method].items()}
    own |= {name: float(own[name]) for name in AUTOMATIC[method]}  # 1 is 1.0
    return {name: x for name, x in own.items() if name not in automatic(config, method)}


def made_by(config: ConfigDict, settings: Mapping[str, Any]) -> bool:
    """Whether factors of these `factorization_settings`, read from JSON, are the configuration's.

    What is 'auto' in the configuration may have been any number.
    """
    wanted = json.loads(json.dumps(factorization_settings(config)))
    found, own = settings["config"], wanted["config"]
    for name in ("method", "value_scale"):
        if settings.get(name) != wanted.get(name):
            return False
    if len(methods(config)) == 1:
        return own.items() <= found.items()
    return own.keys() == found.keys() and all(own[x].items() <= found[x].items() for x in own)


def rank(config: ConfigDict) -> int:
    """Columns of the factors of a configuration, without biases."""
    return sum(config[name].factors for name in methods(config))


def train_config(config: ConfigDict) -> TrainConfig:
    """Settings of training."""
    return TrainConfig(**config.train)


def evaluation_config(config: ConfigDict) -> EvaluationConfig:
    """Settings of the evaluation of rankings."""
    return EvaluationConfig(**config.evaluation)


def checkpoint_config(config: ConfigDict) -> CheckpointConfig:
    """Settings of checkpoints."""
    return CheckpointConfig(**config.checkpoints)


def device_config(config: ConfigDict) -> DeviceConfig:
    """Settings of the placement of tables on devices."""
    return DeviceConfig(**config.devices)


def make_model(config: ConfigDict, name: str) -> DLRM | DCN | TwoTower:
    """The network of that name."""
    return MODELS[name](**config[name])


def folder_name(config: ConfigDict) -> str:
    """`config.name`, which names a folder.

    Raises:
      ConfigError: if it could name anything but a folder in the current one.
    """
    if not re.fullmatch(r"\w[\w.-]*", config.name):
        raise ConfigError(
            f"name={config.name!r}: must start with a letter, digit or underscore and have only "
            "these, dots and dashes: it names a folder"
        )
    return config.name


def raw_path(config: ConfigDict) -> AnyPath:
    """The raw file or folder: `data.path`, or `data.folder` inside $CADC_DATA_DIR.

    Raises:
      ConfigError: if it is a URL that cannot be used.
    """
    path = data_folder() / config.data.folder
    if config.data.path:
        path = storage.path_of(config.data.path, "data.path")
        if isinstance(path, pathlib.Path):
            path = path.expanduser()
    if isinstance(path, Remote) and config.data.source == "tfds":
        raise ConfigError(
            f"data.path={path}: data sets of TFDS are read from a local folder alone; copy it"
        )
    return path


def data_folder() -> AnyPath:
    """The folder of raw data sets: $CADC_DATA_DIR, or `data` in the current folder."""
    return storage.path_of(os.environ.get("CADC_DATA_DIR", "data"), "CADC_DATA_DIR")


def _fields_of(cls: type) -> dict[str, Any]:
    """Defaults of a dataclass' own fields; flax modules have 'parent' and 'name' besides."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")]
    return {field.name: field.default for field in fields}

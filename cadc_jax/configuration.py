"""The configuration of a run: its defaults, its checks, and what the stages are given of it.

`ConfigDict`s end here: all code below `experiment` takes plain arguments or its own dataclass.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import sparse_optimizers
from cadc_jax.cost import Sizes
from cadc_jax.data import splits
from cadc_jax.data.prepare import PrepareConfig
from cadc_jax.data.readers import criteo
from cadc_jax.errors import ConfigError
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.models.dcn import DCN
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training.step import TrainConfig

SOURCES = ("criteo", "movielens", "tabular", "tfds")
TASKS = ("click", "ranking")
ARMS = ("full", "sample", "cadc_frozen", "cadc_trainable")
MODELS = {"dlrm": DLRM, "dcn": DCN, "two_tower": TwoTower}
FACTOR_ROWS = ("all", "unsampled")
RANKINGS = ("sampled", "full")
METHODS = {"als": ALSConfig, "sgd": SGDConfig}
# The least that numbers and the sizes of layers may be; METHODS check their own.
LEAST = {
    "data.min_count": 0,
    "data.num_negatives": 0,
    "data.max_malformed": 0,
    "data.max_vocabulary": 0,
    "data.block_bytes": 1,
    "data.synthetic_rows": 0,
    "train.batch_rows": 1,
    "train.negatives": 0,
    "train.learning_rate": 0,
    "train.table_learning_rate": 0,
    "train.l2": 0,
    "train.clip_norm": 0,
    "train.warmup_steps": 0,
    "train.decay_steps": 0,
    "train.microbatch_rows": 0,
    "train.steps_per_call": 1,
    "train.max_evaluations": 1,
    "train.evaluation_steps": 1,
    "train.patience": 1,
    "dlrm.embedding_dim": 1,
    "dlrm.bottom": 1,
    "dlrm.top": 1,
    "dcn.cross_layers": 0,
    "dcn.rank": 0,
    "dcn.top": 1,
    "two_tower.hidden": 1,
    "two_tower.gate": 0,
    "devices.model": 1,
    "devices.table_bytes": 0,
    "checkpoints.seconds": 0,  # inf saves at signals only
    "checkpoints.keep": 2,
    "evaluation.k": 1,
    "evaluation.max_users": 0,
}
BELOW_1 = ("train.label_smoothing", "dlrm.dropout", "dcn.dropout", "two_tower.dropout")


def default_config() -> ConfigDict:
    """Every field there is, with defaults. The files in `configs/` start from it."""
    config = ConfigDict()
    config.name = "default"  # of the run's folder and of the report
    config.seed = 0  # of everything random
    config.rate = 0.1  # share of the training rows that the sample keeps, in (0, 1]
    config.models = ("two_tower",)  # of 'dlrm', 'dcn' and 'two_tower'
    config.arms = ARMS  # what to compare

    data = config.data = ConfigDict()
    data.source = "tabular"  # 'criteo', 'movielens', 'tabular' or 'tfds'
    data.path = ""  # the raw file or folder; empty: `folder` inside $CADC_DATA_DIR (tfds: its own)
    data.folder = ""
    data.task = "ranking"  # 'ranking' (positives only) or 'click' (labels 0 and 1)
    data.split = "leave_one_out"  # leave_one_out, order, time, random or given
    data.validation = 0.1  # share of rows, for order, time and random
    data.test = 0.1
    data.min_count = 1  # training rows a value needs for an id of its own
    data.user_features = ()  # columns that name the user, where there is no user id
    data.item_features = ()
    data.log_dense = False  # log(1 + x) of dense features, for counts
    data.num_negatives = 99  # of the '1 + K' ranking protocol
    data.max_malformed = 0.0  # share of malformed rows to leave out before giving up
    data.max_vocabulary = 0  # values a column may have before it is hashed to so many ids; 0: any
    data.block_bytes = 1 << 23  # raw text decoded at a time on each core; bounds memory
    data.synthetic_rows = 200_000  # criteo: rows made up where there is no file; 0: an error
    data.tfds_name = ""  # tfds: name of the data set, such as 'movielens/100k-ratings'
    data.variant = ""  # movielens: '100k', '1m' or '10m'
    # tabular: files inside the folder. criteo with split='given': names of the files that validate
    # and test, * stands for anything. tfds: names of splits, several joined by +.
    data.train_file = ""
    data.validation_file = ""
    data.test_file = ""
    data.negatives_file = ""  # tabular: items to rank each test row's item against
    data.columns = ConfigDict(  # tabular, tfds: what the columns are; see data/tabular.py
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

    config.factorization = "als"  # 'als' or 'sgd', with the settings of the section of that name
    # Rows whose factors a frozen arm trains on: 'all', or 'unsampled', all but the sample. Factors
    # have seen the rows they come from and score them too well, which a model trained on the same
    # rows takes for granted. It predicts with the factors of all rows either way, and they are what
    # a trainable arm starts from.
    config.factor_rows = "all"
    config.als = ConfigDict(_fields_of(ALSConfig))
    config.sgd = ConfigDict(_fields_of(SGDConfig))
    config.train = ConfigDict(_fields_of(TrainConfig))
    config.dlrm = ConfigDict(_fields_of(DLRM))  # other models' features have its embedding_dim, too
    config.dcn = ConfigDict(_fields_of(DCN))
    config.two_tower = ConfigDict(_fields_of(TwoTower))

    config.devices = ConfigDict()
    config.devices.model = 1  # devices over which large tables may be split; a divisor of all
    config.devices.table_bytes = float("inf")  # memory of a device for tables and their state
    config.checkpoints = ConfigDict()
    config.checkpoints.seconds = (
        300.0  # between saves; 0: at every chance; inf: none but at signals
    )
    config.checkpoints.keep = 2  # of each stage under way; at least 2, should one be damaged
    config.log = ConfigDict()
    config.log.tensorboard = False  # write scalars of training to <workdir>/logs
    config.log.profile = False  # write a jax.profiler trace of one interval of steps there

    config.evaluation = ConfigDict()
    config.evaluation.k = 10  # cut-off of HR@k and NDCG@k
    config.evaluation.max_users = 0  # users of the full ranking, drawn at random; 0 for all
    # Ranking of the validation items by which the best step is chosen: 'sampled', among
    # data.num_negatives others, which favours popular items, or 'full', among all.
    config.evaluation.ranking = "sampled"
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Checks what can be checked before any work.

    Raises:
      ConfigError: naming the field, its value and what it may be.
    """
    if not 0 < config.rate <= 1:
        raise ConfigError(
            f"rate={config.rate}: must be above 0 and at most 1, the share of training rows to "
            "keep (0.1 keeps 10 %)"
        )
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("data.task", config.data.task, TASKS)
    _one_of("data.split", config.data.split, splits.RULES)
    _one_of("factorization", config.factorization, METHODS)
    _one_of("factor_rows", config.factor_rows, FACTOR_ROWS)
    _one_of("evaluation.ranking", config.evaluation.ranking, RANKINGS)
    if config.factor_rows == "unsampled" and config.rate == 1:
        raise ConfigError("factor_rows='unsampled': rate=1 leaves no such row; lower the rate")
    for name, allowed in (("models", MODELS), ("arms", ARMS)):
        if isinstance(config[name], str):
            raise ConfigError(
                f"{name}={config[name]!r}: write a tuple, such as ('{config[name]}',)"
            )
        for value in config[name]:
            _one_of(name, value, allowed)
    _one_of("train.loss", config.train.loss, ("bce", "softmax", "in_batch"))
    _one_of("train.table_optimizer", config.train.table_optimizer, sparse_optimizers.OPTIMIZERS)
    for field in ("compute_dtype", "table_dtype"):
        _one_of(f"train.{field}", config.train[field], ("float32", "bfloat16"))
    for field, least in LEAST.items():
        value = _at(config, field)
        if not all(x >= least for x in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{field}={value}: must be at least {least}")
    for field in BELOW_1:
        if not 0 <= _at(config, field) < 1:
            raise ConfigError(f"{field}={_at(config, field)}: must be in [0, 1)")
    ranking = config.data.task == "ranking"
    loss = config.train.loss
    if loss != "bce" and not ranking:
        raise ConfigError(f"train.loss={loss!r} needs the ranking task; use 'bce' for labels")
    if (ranking and loss != "in_batch") != (config.train.negatives > 0):
        if loss == "in_batch":
            why = "the loss 'in_batch' takes its negatives from the batch; set it to 0"
        else:
            why = (
                "the ranking task needs at least 1" if ranking else "rows have labels; set it to 0"
            )
        raise ConfigError(f"train.negatives={config.train.negatives}: {why}")
    if loss == "in_batch" and (set(config.models) != {"two_tower"} or config.train.microbatch_rows):
        raise ConfigError(
            "train.loss='in_batch' scores every user of a batch with every item of it: it needs "
            "models=('two_tower',), which does so in one product, and train.microbatch_rows=0"
        )
    if ranking and (config.data.columns.label or config.data.source == "criteo"):
        raise ConfigError("rows with labels (data.columns.label, criteo) need data.task='click'")
    if not ranking and config.data.source == "movielens":
        raise ConfigError("data.source='movielens' has no labels: it needs data.task='ranking'")
    factorization_config(config)


def prepare_config(config: ConfigDict) -> PrepareConfig:
    """What `prepare` is given."""
    names = {field.name for field in dataclasses.fields(PrepareConfig)} - {"seed"}
    settings = {name: config.data[name] for name in names}
    return PrepareConfig(**settings, seed=config.seed)


def train_config(config: ConfigDict) -> TrainConfig:
    """What training is given."""
    return TrainConfig(**config.train)


def factorization_config(config: ConfigDict) -> ALSConfig | SGDConfig:
    """What the factorisation is given.

    Raises:
      ConfigError: if a value is outside its range.
    """
    return METHODS[config.factorization](**config[config.factorization])


def make_model(config: ConfigDict, name: str) -> DLRM | DCN | TwoTower:
    """The network of that name."""
    return MODELS[name](**config[name])


def sizes(config: ConfigDict, given: Mapping[str, int]) -> Sizes:
    """The sizes of data that are not prepared yet, for `cost`; at most these, where columns hash.

    Args:
      config: says which columns there are, and bounds their values by `data.max_vocabulary`.
      given: `rows`, `num_users`, `num_items` and `feature_rows`, or some of them.

    Raises:
      ConfigError: naming the sizes that are not known.
    """
    data = config.data
    criteo_columns = data.source == "criteo"
    contents = (data.user_content, data.item_content)
    if data.source == "movielens" or any(c.file and c.format != "table" for c in contents):
        raise ConfigError(
            "the columns of this data are known once it is read: run with --stage=prepare first"
        )
    dense = len(criteo.DENSE if criteo_columns else data.columns.dense)
    categorical = len(criteo.CATEGORICAL if criteo_columns else data.columns.categorical)
    # A column that alone is the user or the item is no feature as well.
    categorical -= sum(len(names) == 1 for names in (data.user_features, data.item_features))
    user, item = ((len(c.dense), len(c.categorical)) for c in contents)
    columns = user[1] + categorical + item[1]
    known = {} if columns else {"feature_rows": 0}
    if data.max_vocabulary:
        most = data.max_vocabulary + 1  # id 0 is 'out of vocabulary'
        known = {"feature_rows": columns * most}
        known |= {"num_users": most, "num_items": most} if data.task == "click" else {}
    known |= given
    names = ("rows", "num_users", "num_items", "feature_rows")
    if missing := [f"--{name}=N" for name in names if name not in known]:
        raise ConfigError(
            f"sizes of the data are not known: give {', '.join(missing)}, or run with "
            "--stage=prepare first"
        )
    return Sizes(
        task=data.task,
        rows=known["rows"],
        num_users=known["num_users"],
        num_items=known["num_items"],
        feature_rows=known["feature_rows"],
        dense=(user[0], dense, item[0]),
        categorical=(user[1], categorical, item[1]),
        entries=known["rows"],
    )


def raw_path(config: ConfigDict) -> pathlib.Path:
    """The raw file or folder: `data.path`, or `data.folder` inside $CADC_DATA_DIR."""
    if config.data.path:
        return pathlib.Path(config.data.path).expanduser()
    return pathlib.Path(os.environ.get("CADC_DATA_DIR", "../shared/data")) / config.data.folder


def _fields_of(cls: type) -> dict[str, Any]:
    """Defaults of a dataclass' own fields (flax modules add 'parent' and 'name')."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")]
    return {field.name: field.default for field in fields}


def _at(config: ConfigDict, field: str) -> Any:
    """The value of a field, such as 'train.l2'."""
    section, name = field.split(".")
    return config[section][name]


def _one_of(field: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}={value!r}: must be one of {', '.join(allowed)}")

"""Douban film ratings as clicks: one of 4 and more is a click, a lower one an impression without.

Reads `douban/` in $CADC_DATA_DIR, in the split of Distill-CF (arXiv 2206.02626). The rows have
labels, so that no negatives are drawn; neither users nor films have content.

Settings are those of a few trials on the validation split of seed 0. A study with --trials searches
them for each arm (docs/results.md).

    python -m cadc_jax.main --config=configs/douban_ctr.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "douban_ctr"
    config.models = ("dlrm", "two_tower")

    data = config.data
    data.source = "tabular"
    data.folder = "douban"
    data.task = "click"
    data.columns.value = "rating"
    data.min_value = 4
    data.split = "given"
    data.train_file = "train.csv.gz"
    data.validation_file = "validation.csv.gz"
    data.test_file = "test.csv.gz"

    config.factorization = "sgd"
    config.sgd.factors = 30
    config.sgd.epochs = 20
    config.sgd.learning_rate = 0.1
    config.sgd.regularization = 0.05
    # Factors score the rows they come from too well, and a network would trust them too much.
    config.factor_rows = "unsampled"

    config.dlrm.embedding_dim = 32  # the factors and two columns of biases
    config.two_tower.hidden = (64,)
    config.two_tower.gate = 32

    config.train.learning_rate = 3e-4
    config.train.negatives = 0
    config.train.batch_rows = 1024
    config.train.table_optimizer = "adagrad"
    config.train.table_learning_rate = 0.05
    config.train.l2 = 0.003
    return config

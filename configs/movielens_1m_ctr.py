"""MovieLens 1M as clicks: a rating of 4 and more is a click, a lower one an impression without.

Reads `ml-1m/` in $CADC_DATA_DIR. The rows have labels, so that no negatives are drawn, and users
and films have content. Rows are split at random, as the ratings may come without
timestamps.

Settings are those of a few trials on the validation split of seed 0. A study with --trials searches
them for each arm (docs/results.md).

    python -m cadc_jax.main --config=configs/movielens_1m_ctr.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_1m_ctr"
    config.models = ("dlrm", "two_tower")

    data = config.data
    data.source = "movielens"
    data.variant = "1m"
    data.folder = "ml-1m"
    data.task = "click"
    data.min_value = 4
    data.split = "random"

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

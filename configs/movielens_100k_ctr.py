"""MovieLens 100K as clicks: a rating of 4 and more is a click, a lower one an impression without.

Reads `ml-100k/` in $CADC_DATA_DIR. The rows have labels, so that no negatives are drawn, and users
and films have content. The last rows of each user, by time, validate and test.

Settings are those of a few trials on the validation split of seed 0. A study with --trials searches
them for each arm (docs/results.md).

    python -m cadc_jax.main --config=configs/movielens_100k_ctr.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_100k_ctr"
    config.models = ("dlrm", "two_tower")

    data = config.data
    data.source = "movielens"
    data.variant = "100k"
    data.folder = "ml-100k"
    data.task = "click"
    data.min_value = 4
    data.split = "last_share"

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
    config.train.batch_rows = 512
    config.train.table_optimizer = "adagrad"
    config.train.table_learning_rate = 0.05
    config.train.l2 = 0.003
    return config

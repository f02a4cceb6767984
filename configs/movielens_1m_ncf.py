"""MovieLens 1M as the NCF paper splits it (arXiv 1708.05031): each user's last interaction tests.

Reads `ml-1m-implicit/` in $CADC_DATA_DIR: train.csv.gz, test.csv, test_negatives.csv.gz, users.dat
and movies.dat. The split has no training timestamps: the validation item of a user is drawn from
its training items and taken out of them, from the interaction matrix too.

    python -m cadc_jax.main --config=configs/movielens_1m_ncf.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_1m_ncf"
    config.models = ("two_tower",)

    data = config.data
    data.source = "tabular"
    data.folder = "ml-1m-implicit"
    data.split = "given"
    data.train_file = "train.csv.gz"
    data.test_file = "test.csv"
    data.negatives_file = "test_negatives.csv.gz"
    data.user_content.file, data.user_content.format = "users.dat", "movielens_1m"
    data.item_content.file, data.item_content.format = "movies.dat", "movielens_1m"

    config.factorization = "als"
    config.als.factors = 64
    config.als.regularization = 30.0
    config.als.alpha = 9.0
    config.als.iterations = 15

    config.train.negatives = 4
    config.train.batch_rows = 2048
    config.train.learning_rate = 1e-3
    config.train.table_learning_rate = 1e-2
    config.train.max_evaluations = 40
    config.train.patience = 3
    return config

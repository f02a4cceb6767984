"""MovieLens 1M, split as in the NCF paper (arXiv 1708.05031): each user's last item is the test.

Reads `ml-1m-implicit/` in $CADC_DATA_DIR: train.csv.gz, test.csv, test_negatives.csv.gz, users.dat
and movies.dat. Training rows have no timestamps: the validation item of each user is drawn from its
training items. It is then neither a training row nor in the interaction matrix.

Test hr@10 / ndcg@10 sampled 1+99, of seed 0: MF alone 0.7387 / 0.4579, CADC frozen 0.7401 / 0.4596
(a tenth of the rows).

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
    config.als.factors = 192
    config.als.regularization = 0.04
    config.als.frequency_exponent = 1.0
    config.als.alpha = 4.0
    config.als.iterations = 15
    # With negatives from unlikely items this validates better than "unsampled" (docs/method.md).
    config.factor_rows = "all"

    config.two_tower.hidden = ()
    config.two_tower.gate = 32
    config.two_tower.scale = 0.7  # of the factors' scores at the start; fits the loss below

    config.train.loss = "softmax"
    config.train.negatives = 16
    config.train.batch_rows = 1024
    config.train.learning_rate = 5e-4
    config.train.table_learning_rate = 1e-2
    config.train.max_evaluations = 20
    config.train.evaluation_steps = 20  # at a rate of 0.01 an epoch is shorter
    config.train.patience = 3
    return config

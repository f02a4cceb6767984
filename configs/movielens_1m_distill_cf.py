"""MovieLens 1M in the split of Distill-CF (arXiv 2206.02626): a tenth of each user's rows tests.

Reads `ml-1m-distill-cf/` in $CADC_DATA_DIR: train.csv.gz, validation.csv.gz and test.csv.gz, with
the columns user_id, item_id and rating. Every rating is a positive. Users have several test items.

Test ndcg@10 / recall@10 per user among all items, of seed 0: the factors alone 0.3410 / 0.2070.
From a tenth of the rows the frozen network's best step is its start. Published: infinite-AE 0.3282,
EASE 0.2988 (both saw the validation rows as input).

    python -m cadc_jax.main --config=configs/movielens_1m_distill_cf.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_1m_distill_cf"
    config.models = ("two_tower",)
    config.arms = ("cadc_frozen",)

    data = config.data
    data.source = "tabular"
    data.folder = "ml-1m-distill-cf"
    data.split = "given"
    data.train_file = "train.csv.gz"
    data.validation_file = "validation.csv.gz"
    data.test_file = "test.csv.gz"

    config.factorization = "autoencoder+als"
    config.autoencoder.factors = 256
    config.autoencoder.regularization = 0.83
    config.autoencoder.user_exponent = 0.3
    config.als.factors = 192
    config.als.regularization = 1.03
    config.als.frequency_exponent = 1.0
    config.als.alpha = 4.0
    config.als.iterations = 15

    config.two_tower.hidden = ()
    config.two_tower.gate = 32
    config.two_tower.scale = 0.7
    config.train.loss = "softmax"
    config.train.negatives = 16
    config.train.batch_rows = 1024
    config.train.learning_rate = 1e-4
    config.train.evaluation_steps = 40
    config.train.patience = 3
    return config

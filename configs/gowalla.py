"""Gowalla check-ins in the split of LightGCN (arXiv 2002.02126) and the BARS benchmark.

Reads `gowalla/` in $CADC_DATA_DIR: train.csv.gz and test.csv.gz, with the columns user_id and
item_id. Users have several test items. One seeded training row of each user validates.

Test ndcg@20 / recall@20 per user among all items, of seed 0: the factors alone 0.1532 / 0.1801.
Published, by models that saw the rows that validate here: SimpleX 0.1557 / 0.1872, LightGCN
0.1547 / 0.1820, EASE 0.1467 / 0.1765.

    python -m cadc_jax.main --config=configs/gowalla.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "gowalla"
    config.models = ("two_tower",)
    config.arms = ("cadc_frozen",)

    data = config.data
    data.source = "tabular"
    data.folder = "gowalla"
    data.split = "given"
    data.train_file = "train.csv.gz"
    data.test_file = "test.csv.gz"

    config.factorization = "autoencoder+als"
    config.autoencoder.factors = 512
    config.autoencoder.regularization = 0.111
    config.autoencoder.dropout = 1 / 3
    config.autoencoder.user_exponent = 0.5
    config.autoencoder.start_exponent = 0.5
    config.autoencoder.item_exponent = 0.5
    config.als.factors = 256
    config.als.regularization = 0.251
    config.als.frequency_exponent = 1.0
    config.als.alpha = 20.0
    config.als.iterations = 15

    config.evaluation.k = (20, 10, 50)
    config.evaluation.max_users = 0
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

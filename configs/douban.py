"""Douban film ratings in the split of Distill-CF (arXiv 2206.02626).

Reads `douban/` in $CADC_DATA_DIR: train.csv.gz, validation.csv.gz and test.csv.gz, with the columns
user_id, item_id and rating. Every rating is a positive. Users have several test items. The log has
repeated rows. They are merged, so figures differ from those of papers that keep them.

    python -m cadc_jax.main --config=configs/douban.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "douban"
    config.models = ("two_tower",)
    config.arms = ("cadc_frozen",)

    data = config.data
    data.source = "tabular"
    data.folder = "douban"
    data.split = "given"
    data.value_scale = "none"  # as measured: a repeated pair counts once
    data.train_file = "train.csv.gz"
    data.validation_file = "validation.csv.gz"
    data.test_file = "test.csv.gz"

    config.factorization = "autoencoder+als"
    config.autoencoder.factors = 256
    config.autoencoder.regularization = 2.98
    config.autoencoder.user_exponent = 0.3
    config.als.factors = 192
    config.als.regularization = 0.255
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

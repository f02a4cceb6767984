"""Likes of Yambda (arXiv 2505.22238): music, a million users at its largest, split by time.

Reads `yambda/flat/50m/likes.parquet` in $CADC_DATA_DIR, or with --config.data.train_file another
file of the same columns (uid, item_id, timestamp, is_organic). The last tenth of the likes tests,
the tenth before it validates. No figure of it is known: it was tried on made-up files alone. 5,000
users, drawn at random, are ranked among all items.

    python -m cadc_jax.main --config=configs/yambda.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "yambda"
    config.models = ("two_tower",)
    config.arms = ("cadc_frozen",)

    data = config.data
    data.source = "tabular"
    data.folder = "yambda/flat/50m"
    data.train_file = "likes.parquet"
    data.columns.user, data.columns.item = "uid", "item_id"
    data.columns.timestamp = "timestamp"
    data.split = "time"

    config.factorization = "autoencoder"
    config.autoencoder.factors = 128
    config.autoencoder.user_exponent = 0.5
    config.autoencoder.start_exponent = 0.5
    config.autoencoder.item_exponent = 0.5

    config.evaluation.max_users = 5000
    config.two_tower.hidden = ()
    config.two_tower.gate = 32
    config.two_tower.scale = 0.7
    config.train.loss = "softmax"
    config.train.negatives = 16
    config.train.batch_rows = 4096
    config.train.learning_rate = 1e-4
    config.train.patience = 3
    return config

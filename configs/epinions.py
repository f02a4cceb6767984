"""Epinions (Massa and Avesani), implicit: one held-out item a user of three interactions or more.

Reads `epinions/interactions.csv.gz` (user_id, item_id) in $CADC_DATA_DIR. There are no timestamps,
so that a seeded order stands in for time, and no content. The full ranking is over 139,738 items:
2,000 users, drawn at random, are ranked.

    python -m cadc_jax.main --config=configs/epinions.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "epinions"
    config.models = ("two_tower",)

    data = config.data
    data.source = "tabular"
    data.folder = "epinions"
    data.train_file = "interactions.csv.gz"
    data.split = "leave_one_out"

    config.factorization = "als"
    config.als.factors = 64
    config.als.regularization = 5.0
    config.als.alpha = 9.0
    config.als.iterations = 15

    config.train.negatives = 4
    config.train.batch_rows = 2048
    config.train.table_learning_rate = 2e-3
    config.train.max_evaluations = 30
    config.evaluation.max_users = 2000
    config.evaluation.ranking = "full"  # few candidates favour popular items
    return config

"""Epinions (Massa and Avesani), implicit: one test item for users with at least 3 interactions.

Reads `epinions/interactions.csv.gz` (user_id, item_id) in $CADC_DATA_DIR. The data have no content
and no timestamps; a seeded random order stands in for time. All 139,738 items are ranked, for 2,000
users drawn at random.

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
    config.als.regularization = 0.277  # no better one was found: docs/tuning/epinions.csv
    config.als.alpha = 9.0
    config.als.iterations = 15

    config.train.negatives = 4
    config.train.batch_rows = 2048
    config.train.table_learning_rate = 2e-3
    config.train.max_evaluations = 30
    config.evaluation.max_users = 2000
    return config

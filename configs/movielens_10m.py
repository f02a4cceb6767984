"""MovieLens 10M, original files: each user's last item is the test, the one before validation.

Reads `ml-10m/` in $CADC_DATA_DIR: ratings.dat and movies.dat (there is no file about users).

    python -m cadc_jax.main --config=configs/movielens_10m.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_10m"
    config.models = ("two_tower",)

    data = config.data
    data.source = "movielens"
    data.variant = "10m"
    data.folder = "ml-10m"
    data.split = "leave_one_out"
    data.value_scale = "none"  # a film that was rated counts, however it was

    config.factorization = "als"
    config.als.factors = 64
    config.als.regularization = 0.237
    config.als.alpha = 9.0
    config.als.iterations = 15

    config.train.negatives = 4
    config.train.batch_rows = 8192
    config.train.table_learning_rate = 1e-2
    config.train.max_evaluations = 40
    config.evaluation.max_users = 10_000
    return config

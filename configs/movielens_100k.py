"""MovieLens 100K, original files: each user's last item is the test, the one before validation.

Reads `ml-100k/` in $CADC_DATA_DIR: u.data, u.user and u.item.

    python -m cadc_jax.main --config=configs/movielens_100k.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_100k"
    config.models = ("two_tower",)

    data = config.data
    data.source = "movielens"
    data.variant = "100k"
    data.folder = "ml-100k"
    data.split = "leave_one_out"
    data.value_scale = "none"  # a film that was rated counts, however it was

    config.factorization = "als"
    config.als.factors = 32
    config.als.regularization = 0.4007  # these three: docs/tuning/movielens_100k.csv
    config.als.frequency_exponent = 0.7003
    config.als.alpha = 0.1296
    config.als.iterations = 15

    # Validates better than the factors, but in tests it is not told apart (docs/results.md).
    config.train.loss = "all_items"
    config.two_tower.hidden = ()
    config.two_tower.gate = 32
    config.two_tower.scale = 2.0
    config.train.batch_rows = 512
    config.train.learning_rate = 5e-4
    config.train.table_learning_rate = 2e-3
    config.train.evaluation_steps = 20  # an epoch of the sample
    config.train.max_evaluations = 40
    return config

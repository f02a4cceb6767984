"""MovieLens 1M, original files: each user's last item is the test, the one before validation.

Reads `ml-1m/` in $CADC_DATA_DIR: ratings.dat, users.dat and movies.dat. If the ratings have no
timestamps, a seeded random order stands in for time.

    python -m cadc_jax.main --config=configs/movielens_1m.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_1m"
    config.models = ("two_tower",)

    data = config.data
    data.source = "movielens"
    data.variant = "1m"
    data.folder = "ml-1m"
    data.split = "leave_one_out"
    data.value_scale = "none"  # a film that was rated counts, however it was

    config.factorization = "als"
    config.als.factors = 64
    config.als.regularization = 0.9341  # these three: docs/tuning/movielens_1m.csv
    config.als.frequency_exponent = 1.172
    config.als.alpha = 1.065
    config.als.iterations = 15

    # Validates better than the factors, but in tests it is not told apart (docs/results.md).
    config.train.loss = "all_items"
    config.two_tower.hidden = ()
    config.train.batch_rows = 512
    config.train.learning_rate = 5e-4
    config.train.table_learning_rate = 1e-2
    config.train.max_evaluations = 40
    config.train.evaluation_steps = 192  # an epoch of the sample
    return config

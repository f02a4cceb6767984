"""MovieLens 100K as clicks: a rating of 4 and more is a click, a lower one an impression without.

Reads `ml-100k/` in $CADC_DATA_DIR. The rows have labels, so that no negatives are drawn, and users
and films have content. The last rows of each user, by time, validate and test.

Other settings are those of `movielens_1m_ctr.py`. A study with --trials searches them for each arm
(docs/results.md).

    python -m cadc_jax.main --config=configs/movielens_100k_ctr.py
"""

from cadc_jax.run import bundled_configs


def get_config():
    config = bundled_configs.config("movielens_1m_ctr")
    config.name = "movielens_100k_ctr"

    data = config.data
    data.variant = "100k"
    data.folder = "ml-100k"
    data.split = "last_share"

    config.train.batch_rows = 512
    return config

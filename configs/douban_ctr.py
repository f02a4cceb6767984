"""Douban film ratings as clicks: one of 4 and more is a click, a lower one an impression without.

Reads `douban/` in $CADC_DATA_DIR, in the split of Distill-CF (arXiv 2206.02626). The rows have
labels, so that no negatives are drawn; neither users nor films have content.

Other settings are those of `movielens_1m_ctr.py`. A study with --trials searches them for each arm
(docs/results.md).

    python -m cadc_jax.main --config=configs/douban_ctr.py
"""

from cadc_jax.run import bundled_configs


def get_config():
    config = bundled_configs.config("movielens_1m_ctr")
    config.name = "douban_ctr"

    data = config.data
    data.source = "tabular"
    data.variant = ""
    data.folder = "douban"
    data.columns.value = "rating"
    data.split = "given"
    data.train_file = "train.csv.gz"
    data.validation_file = "validation.csv.gz"
    data.test_file = "test.csv.gz"
    return config

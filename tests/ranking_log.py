"""A small ranking log on disk and its configuration file, for runs of several processes."""

import numpy as np

CONFIG = """
from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.data.path = {path!r}
    config.data.train_file = "log.csv"
    config.data.num_negatives = 20
    config.rate = 0.3
    config.als.factors = 8
    config.als.iterations = 3
    config.als.regularization = 1.0
    config.als.fixed_side = "sharded"
    config.train.negatives = 2
    config.train.max_evaluations = 2
    config.train.table_learning_rate = 0.01
    config.update_from_flattened_dict({settings!r})
    return config
"""


def write(folder, settings):
    """Writes a log of 90 users and 41 items; returns the file of a configuration.

    Args:
      folder: an existing folder.
      settings: field -> value, beside those that every such run has.
    """
    random = np.random.default_rng(0)
    taste = random.normal(size=(90, 3)) @ random.normal(size=(3, 41))
    user, item = np.nonzero(taste + random.normal(size=taste.shape) > 1.2)
    order = random.permutation(len(user))
    pairs = zip(user[order], item[order], strict=True)
    lines = [f"u{u},i{i},{t}" for t, (u, i) in enumerate(pairs)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    (folder / "config.py").write_text(CONFIG.format(path=str(folder), settings=settings))
    return folder / "config.py"

"""Criteo 1 TB click logs (24 day files, 4.4 billion rows): DLRM on a 10 % sample of days 0 to 21.

    python -m cadc_jax.main --config=configs/criteo_terabyte.py --config.data.path=/path/to/folder

The folder holds `day_0` to `day_23`, plain or compressed with gzip or Zstandard. Day 22 is the
validation split, day 23 the test split. A column with more than 4 million values is hashed to that
number of ids, which bounds memory. The logs name neither users nor items: columns C11 and C12 stand
in for them, since both have enough rows for each value. Run `cadc candidates` on your own columns
before you rely on this choice. Batches, widths and products in bfloat16 are for accelerators; the
learning rates were not tuned on these logs.
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "criteo_terabyte"
    config.models = ("dlrm",)
    config.arms = ("sample", "cadc_frozen")

    data = config.data
    data.source = "criteo"
    data.folder = "criteo_terabyte"
    data.synthetic_rows = 0  # none unless asked for, and then in three files
    data.task = "click"
    data.split = "given"
    data.validation_file = "day_22*"
    data.test_file = "day_23*"
    data.max_malformed = 1e-4
    data.max_vocabulary = 1 << 22
    data.min_count = 10
    data.user_features = ("C11",)
    data.item_features = ("C12",)
    data.log_dense = True

    config.factorization = "sgd"
    config.sgd.factors = 62  # plus two biases: the width of DLRM's embeddings
    config.sgd.negatives = 1
    config.sgd.epochs = 2
    config.sgd.batch_rows = 1 << 16
    config.sgd.learning_rate = 0.2
    config.sgd.regularization = 0.05

    config.dlrm.embedding_dim = 64
    config.dlrm.bottom = (512, 256)
    config.dlrm.top = (512, 256)
    config.train.batch_rows = 16384
    config.train.compute_dtype = "bfloat16"
    config.train.learning_rate = 1e-3
    config.train.table_optimizer = "adagrad"
    config.train.table_learning_rate = 0.02
    config.train.evaluation_steps = 5000
    config.evaluation.max_rows = 1 << 23  # of the millions that validate
    return config

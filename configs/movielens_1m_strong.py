"""MovieLens 1M, users held out whole: a tenth of the users validates and another tenth tests.

The vector of such a user is computed from four fifths of its ratings, with the items fixed; the
other fifth is looked for among all items that are left (Liang et al. 2018, arXiv 1802.05814).
Every rating is a positive. Reads `ml-1m/` in $CADC_DATA_DIR, as configs/movielens_1m.py does.

Test recall@20 / recall@50 / ndcg@100 per user, of seed 0 and 604 users, a tenth of the rows:
popularity 0.1049 / 0.1862 / 0.2211, MF alone (the fold-in) 0.2606 / 0.4325 / 0.4764,
CADC frozen 0.2556 / 0.4256 / 0.4739, trainable 0.2611 / 0.4319 / 0.4780. The factors'
settings were chosen by the ndcg@100 of validation.

    python -m cadc_jax.main --config=configs/movielens_1m_strong.py
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "movielens_1m_strong"
    config.models = ("two_tower",)
    config.arms = ("cadc_frozen", "cadc_trainable")  # others have no vectors of held-out users

    data = config.data
    data.source = "movielens"
    data.variant = "1m"
    data.folder = "ml-1m"
    data.split = "users"
    data.value_scale = "none"  # a film that was rated counts, however it was
    data.validation = 0.1
    data.test = 0.1

    config.factorization = "als"
    config.als.factors = 128
    config.als.regularization = 0.747
    config.als.frequency_exponent = 1.0
    config.als.alpha = 4.0
    config.als.iterations = 15
    config.factor_rows = "unsampled"

    config.two_tower.hidden = ()
    config.two_tower.gate = 32

    config.train.loss = "softmax"
    config.train.negatives = 16
    config.train.batch_rows = 1024
    config.train.learning_rate = 1e-4
    config.train.table_learning_rate = 1e-2
    config.train.max_evaluations = 20
    config.train.evaluation_steps = 20
    config.train.patience = 3
    config.evaluation.k = (100, 50, 20)  # the NDCG at the first one chooses the best step
    return config

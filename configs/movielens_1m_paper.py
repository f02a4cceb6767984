"""MovieLens 1M as the CADC paper describes its method (arXiv 2407.08108), on the NCF split.

Logistic factorisation with biases of all rows, and a two-tower network with hidden layers that is
trained by the logistic loss, with negatives from all items but the user's own kept ones. Numbers
that the paper leaves open (rates, penalties) were chosen on the validation split.
docs/method.md has what the other configurations do differently.

    python -m cadc_jax.main --config=configs/movielens_1m_paper.py
"""

from cadc_jax.run import bundled_configs


def get_config():
    config = bundled_configs.config("movielens_1m_ncf")
    config.name = "movielens_1m_paper"

    config.factorization = "sgd"
    config.sgd.factors = 64
    config.sgd.negatives = 4
    config.sgd.epochs = 20
    config.sgd.learning_rate = 0.1
    config.sgd.regularization = 0.03
    config.sgd.frequency_exponent = 1.0
    config.factor_rows = "all"

    config.two_tower.hidden = (128,)
    config.two_tower.gate = 0
    config.two_tower.scale = 1.0

    config.train.loss = "bce"
    config.train.negatives = 4
    config.train.negatives_from = "all"
    return config

"""Plain NumPy float64 references on dense matrices, and small data to run them on."""

import numpy as np

U, I = 40, 30  # noqa: E741 (the letters of the package)


def sparse_data():
    """A log with empty rows, empty columns, one dense row, one dense column and repeats."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(3, U, 300), rng.integers(2, I, 300)
    user = np.concatenate([user, np.full(I - 2, 7), np.arange(3, U), user[:5]])
    item = np.concatenate([item, np.arange(2, I), np.full(U - 3, 4), item[:5]])
    return user, item, rng.integers(1, 6, len(user)).astype(np.float32)


def noise_unit(alpha):
    """What the regularisation of implicit ALS is measured in, for `sparse_data`."""
    user, item, _ = sparse_data()
    seen = dense(user, item, 1.0, U, I) > 0
    return np.sqrt(alpha) * sum(np.sqrt(seen.sum() / seen.any(axis).sum()) for axis in (0, 1))


def dense(user, item, value, num_users, num_items):
    """The matrix of a log; repeated pairs are added."""
    matrix = np.zeros((num_users, num_items))
    np.add.at(matrix, (user, item), value)
    return matrix


def implicit_half_step(matrix, fixed, regularization, alpha):
    """Exact solution of the normal equations, row by row; `regularization` [N] of each row."""
    confidence, preference = 1 + alpha * np.abs(matrix), (matrix > 0).astype(float)
    solved = np.zeros((len(matrix), fixed.shape[1]))
    for row, (c, p) in enumerate(zip(confidence, preference, strict=True)):
        a = fixed.T @ (c[:, None] * fixed) + regularization[row] * np.eye(fixed.shape[1])
        solved[row] = np.linalg.solve(a, fixed.T @ (c * p))
    return solved


def implicit_cg_half_step(matrix, fixed, start, regularization, alpha, steps):
    """Textbook conjugate gradients on the same equations."""
    solved = np.zeros_like(start)
    for row, values in enumerate(matrix):
        c, p = 1 + alpha * np.abs(values), (values > 0).astype(float)
        a = fixed.T @ (c[:, None] * fixed) + regularization[row] * np.eye(fixed.shape[1])
        x = start[row].copy()
        r = fixed.T @ (c * p) - a @ x
        d = r.copy()
        for _ in range(steps):
            if r @ r < 1e-20:
                break
            step = (r @ r) / (d @ a @ d)
            x, r, old = x + step * d, r - step * (a @ d), r @ r
            d = r + (r @ r) / old * d
        solved[row] = x
    return solved


def implicit_objective(matrix, user, item, user_regularization, item_regularization, alpha):
    """Weighted squared error over all pairs, plus the regularisation."""
    confidence, preference = 1 + alpha * np.abs(matrix), (matrix > 0).astype(float)
    error = (confidence * (preference - user @ item.T) ** 2).sum()
    return (
        error
        + (user_regularization * (user**2).sum(1)).sum()
        + (item_regularization * (item**2).sum(1)).sum()
    )


def explicit_half_step(matrix, fixed, fixed_bias, mean, regularization):
    """Exact factors and biases of the rows; 0 in the matrix means no entry."""
    ones = np.concatenate([fixed, np.ones((len(fixed), 1))], 1)
    solved = np.zeros((len(matrix), ones.shape[1]))
    for row, values in enumerate(matrix):
        seen = values != 0
        if seen.any():
            y = ones[seen]
            a = y.T @ y + regularization[row] * np.eye(ones.shape[1])
            solved[row] = np.linalg.solve(a, y.T @ (values[seen] - mean - fixed_bias[seen]))
    return solved[:, :-1], solved[:, -1]


def explicit_objective(matrix, factors, user_regularization, item_regularization):
    """Squared error over the entries, plus the regularisation of factors and biases."""
    user, item = np.float64(factors.user), np.float64(factors.item)
    user_bias, item_bias = np.float64(factors.user_bias), np.float64(factors.item_bias)
    scores = user @ item.T + user_bias[:, None] + item_bias + np.float64(factors.global_bias)
    error = (((matrix - scores) ** 2) * (matrix != 0)).sum()
    return (
        error
        + (user_regularization * ((user**2).sum(1) + user_bias**2)).sum()
        + (item_regularization * ((item**2).sum(1) + item_bias**2)).sum()
    )


def autoencoder_terms(matrix, config):
    """G = X'W^2X, the penalty and the loss weight of each item."""
    users = (matrix != 0).sum(1)
    seen = users > 0
    weight = np.where(seen, (users.clip(1) / users[seen].mean()) ** (-2 * config.user_exponent), 0)
    gram = matrix.T @ (weight[:, None] * matrix)
    n = np.diag(gram)
    rows, columns = (matrix != 0).sum(1), (matrix != 0).sum(0)
    noise = np.sqrt(rows[rows > 0].mean()) + np.sqrt(columns[columns > 0].mean())
    penalty = config.regularization * noise**2 * n.sum() / rows.sum()
    penalty = penalty + config.dropout / (1 - config.dropout) * n
    scale = np.where(n > 0, n, 1) / n[n > 0].mean()
    return gram, penalty, np.where(n > 0, scale**-config.item_exponent, 0)


def autoencoder_weights(encoder, item):
    """P Q' with a zero diagonal."""
    weights = np.float64(encoder) @ np.float64(item).T
    np.fill_diagonal(weights, 0)
    return weights


def autoencoder_objective(matrix, encoder, item, config):
    """The weighted squared error of X by its weighted sums, plus the penalty."""
    gram, penalty, scale = autoencoder_terms(matrix, config)
    weights = autoencoder_weights(encoder, item)
    error = np.diag(gram) - 2 * (weights * gram).sum(0) + (weights * (gram @ weights)).sum(0)
    return (scale * (error + (penalty[:, None] * weights**2).sum(0))).sum()


def autoencoder_items(matrix, encoder, config):
    """The best items for an encoder, by least squares for each one."""
    gram, penalty, _ = autoencoder_terms(matrix, config)
    rows = []
    for i, column in enumerate(gram.T):
        p = np.float64(encoder).copy()
        p[i] = 0
        rows.append(np.linalg.lstsq(p.T @ (gram + np.diag(penalty)) @ p, p.T @ column)[0])
    return np.array(rows)


def full_autoencoder(matrix, config):
    """Weights of full rank: Steck 2020, eq. 10, with G for X'X. Without dropout it is EASE."""
    gram, penalty, _ = autoencoder_terms(matrix, config)
    inverse = np.linalg.inv(gram + np.diag(penalty))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights

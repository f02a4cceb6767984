"""Trials of a factorisation: the spaces to search, and what a trial scores.

The penalties are in units of the log (`ALSConfig`, `AutoencoderConfig`), so one space serves logs
of all sizes: the best value is seldom far from the middle of its grid, and the grid grows where it
is. All trials of ALS at one rank share their compiled programs: regularisation, confidence and
exponents are numbers that these take.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from cadc_jax.errors import TrainingError
from cadc_jax.factorization import als, autoencoder, sgd
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.factorization.sgd import SGDConfig, TrainingRows
from cadc_jax.tuning.halving import Evaluate
from cadc_jax.tuning.space import Axis
from cadc_jax.tuning.trials import Trial

VERSION = 1  # raise it when spaces or rungs change
Config = TypeVar("Config", ALSConfig, AutoencoderConfig, SGDConfig)
AnyConfig = ALSConfig | AutoencoderConfig | SGDConfig
Quality = Callable[[Factors, Any], float]  # of factors and their settings; higher is better

_ALS = {
    axis.name: axis
    for axis in (
        Axis("regularization", (1.0, 0.5, 2.0, 0.25), 2.0, 2**-8, 2**8, (0.125, 4.0)),
        Axis("alpha", (4.0, 1.0, 16.0), 4.0, 2**-6, 2**10, (0.25, 32.0)),
        Axis("frequency_exponent", (0.0, 0.5, 1.0), 0.5, 0.0, 1.5, (0.0, 1.0), linear=True),
    )
}
_EXPLICIT = {
    "regularization": Axis(
        "regularization", (0.1, 0.03, 0.3, 1.0), 10**0.5, 1e-5, 1e3, (0.01, 1.0)
    ),
    "frequency_exponent": _ALS["frequency_exponent"],
}
_AUTOENCODER = {
    axis.name: axis
    for axis in (
        Axis("regularization", (0.35, 0.12, 1.0), 3.0, 1e-3, 1e3, (0.05, 4.0)),
        Axis("dropout", (0.2, 0.4), 0.2, 0.0, 0.8, (0.0, 0.6), linear=True),
        Axis("user_exponent", (0.0, 0.3), 0.3, 0.0, 1.0, (0.0, 0.6), linear=True),
        Axis("start_exponent", (0.15, 0.5), 0.3, 0.0, 1.0, (0.0, 0.6), linear=True),
        Axis("item_exponent", (0.0, 0.5), 0.4, 0.0, 1.0, (0.0, 0.6), linear=True),
    )
}
_SGD = {
    axis.name: axis
    for axis in (
        Axis("regularization", (0.03, 0.01, 0.1), 3.0, 1e-5, 1e2, (0.003, 0.3)),
        Axis("frequency_exponent", (0.5, 0.0, 1.0), 0.25, 0.0, 1.5, (0.0, 1.0), linear=True),
        Axis("learning_rate", (0.05, 0.2), 4.0, 1e-3, 10.0, (0.02, 0.5)),
    )
}


def axes(config: AnyConfig) -> Mapping[str, Axis]:
    """The settings of a factorisation that can be searched, by name."""
    if isinstance(config, SGDConfig):
        return _SGD
    if isinstance(config, AutoencoderConfig):
        return _AUTOENCODER
    return _EXPLICIT if config.feedback == "explicit" else _ALS


def resource(config: AnyConfig) -> int:
    """What a trial gets in full: iterations, passes or epochs."""
    if isinstance(config, SGDConfig):
        return config.epochs
    return config.passes if isinstance(config, AutoencoderConfig) else config.iterations


def changed(config: Config, names: Sequence[str], trial: Trial) -> Config:
    """The settings of a trial."""
    settings: dict[str, Any] = dict(zip(names, trial, strict=True))
    if "factors" in settings:
        settings["factors"] = int(settings["factors"])
    return dataclasses.replace(config, **settings)


def of_als(
    interactions: Interactions,
    config: ALSConfig,
    names: Sequence[str],
    quality: Quality,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> Evaluate:
    """Trials of ALS: a resource is a number of iterations. More of them continue from fewer.

    Args:
      interactions: training entries.
      config: the settings that all trials share.
      names: of the settings that a trial has.
      quality: of factors.
      key: as for `als.fit`.
      mesh: as for `als.fit`.
    """

    def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
        before, init = state or (0, None)
        own = changed(config, names, trial)
        own = dataclasses.replace(own, iterations=resource - before, tolerance=0.0)
        found, _ = als.fit(interactions, own, key, mesh=mesh, init=init)
        return quality(found, own), (resource, found)

    return _or_failed(evaluate)


def of_autoencoder(
    interactions: Interactions,
    config: AutoencoderConfig,
    names: Sequence[str],
    quality: Quality,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> Evaluate:
    """Trials of the autoencoder: a resource is a number of passes; arguments as for `of_als`."""

    def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
        del state  # its encoder would be taken for one that is to be kept
        own = dataclasses.replace(changed(config, names, trial), passes=resource)
        found, _ = autoencoder.fit(interactions, own, key, mesh=mesh)
        return quality(found, own), None

    return _or_failed(evaluate)


def of_sgd(
    rows: TrainingRows, config: SGDConfig, names: Sequence[str], quality: Quality, key: jax.Array
) -> Evaluate:
    """Trials of logistic SGD: a resource is a number of epochs; arguments as for `of_als`."""

    def evaluate(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
        del state  # its learning rate has fallen over fewer epochs
        own = dataclasses.replace(changed(config, names, trial), epochs=resource)
        found, _ = sgd.fit(rows, own, key)
        return quality(found, own), None

    return _or_failed(evaluate)


def _or_failed(evaluate: Evaluate) -> Evaluate:
    """The same, with -inf for factors that are not finite."""

    def guarded(trial: Trial, resource: int, state: Any) -> tuple[float, Any]:
        try:
            return evaluate(trial, resource, state)
        except TrainingError:
            return float("-inf"), None

    return guarded

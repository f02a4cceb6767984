"""Collaborative-aware compression of recommendation training data, in JAX (arXiv 2407.08108).

The names below are the public ones; each is imported when it is first used. See `library` for how
they go together.
"""

import importlib

__version__ = "0.1.0"

_PLACES = {
    "library": ("factorize", "sample", "train", "score", "recommend", "load", "Model"),
    "factorization.als": ("ALSConfig",),
    "factorization.sgd": ("SGDConfig",),
    "factorization.factors": ("Factors",),
    "models.dlrm": ("DLRM",),
    "models.dcn": ("DCN",),
    "models.two_tower": ("TwoTower",),
    "training.step": ("TrainConfig",),
    "sharding": ("make_mesh",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}
_MODULES = {"metrics": "metrics", "topk": "factorization.topk", "sampling": "data.sampling"}

__all__ = [*_MODULE_OF, *_MODULES]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cadc_jax.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"cadc_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'cadc_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

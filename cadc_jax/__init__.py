"""Collaborative-aware compression of recommendation training data, in JAX (arXiv 2407.08108).

The names below are the public ones. Each is imported when it is first used. `library` shows how
they work together.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what tools see that do not run this
    from cadc_jax import metrics as metrics
    from cadc_jax.data import sampling as sampling
    from cadc_jax.data.id_map import IdMap as IdMap
    from cadc_jax.factorization import topk as topk
    from cadc_jax.factorization.als import ALSConfig as ALSConfig
    from cadc_jax.factorization.autoencoder import AutoencoderConfig as AutoencoderConfig
    from cadc_jax.factorization.factors import Factors as Factors
    from cadc_jax.factorization.sgd import SGDConfig as SGDConfig
    from cadc_jax.library import Model as Model
    from cadc_jax.library import NewUsers as NewUsers
    from cadc_jax.library import factorize as factorize
    from cadc_jax.library import fold_in as fold_in
    from cadc_jax.library import load as load
    from cadc_jax.library import recommend as recommend
    from cadc_jax.library import sample as sample
    from cadc_jax.library import score as score
    from cadc_jax.library import similar_items as similar_items
    from cadc_jax.library import train as train
    from cadc_jax.models.dcn import DCN as DCN
    from cadc_jax.models.dlrm import DLRM as DLRM
    from cadc_jax.models.two_tower import TwoTower as TwoTower
    from cadc_jax.sharding import make_mesh as make_mesh
    from cadc_jax.training.step import TrainConfig as TrainConfig


_PLACES = {
    "library": (
        *("factorize", "sample", "train", "score", "recommend", "fold_in", "similar_items", "load"),
        *("Model", "NewUsers"),
    ),
    "factorization.als": ("ALSConfig",),
    "factorization.autoencoder": ("AutoencoderConfig",),
    "factorization.sgd": ("SGDConfig",),
    "factorization.factors": ("Factors",),
    "models.dlrm": ("DLRM",),
    "models.dcn": ("DCN",),
    "models.two_tower": ("TwoTower",),
    "training.step": ("TrainConfig",),
    "sharding": ("make_mesh",),
    "data.id_map": ("IdMap",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}
_MODULES = {"metrics": "metrics", "topk": "factorization.topk", "sampling": "data.sampling"}

__all__ = [*_MODULE_OF, *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cadc_jax.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"cadc_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'cadc_jax' has no attribute '{name}'")


def _version() -> str:
    """The installed version; of a checkout that is on the path, but not installed, 'unknown'."""
    try:
        return importlib.metadata.version("cadc-jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Users who are not in the data: their vectors come from their items, by the factorisation.

Models with frozen factors and factors alone take such vectors. A factorisation in a work folder has
all it takes; a compressed data set has no encoder of an autoencoder, and known users are combined
instead (`fold_in.combine`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from cadc_jax.configuration import METHODS
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.factorization import fold_in
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.factorization.blend import Scale
from cadc_jax.factorization.factors import Array
from cadc_jax.factorization.interactions import Extent
from cadc_jax.run.arms import CADC_FROZEN, MF_ALONE
from cadc_jax.run.factor_files import open_factors
from cadc_jax.run.factors import EXTENT
from cadc_jax.run.formats import open_stage
from cadc_jax.runtime import manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.serving.trained import Trained

Columns = Callable[[np.ndarray], Array]  # items [B, L] int32, padded with -1 -> [B, D]
_SEVERAL = {"parts": [str], "scales": [[float]]}


@dataclasses.dataclass(frozen=True)
class NewUsers:
    """Makes the vectors of new users.

    Attributes:
      parts: columns of the factorisations side by side.
      scale: what a vector is divided by, as the model's factors were.
      ending: [n] columns at its end that stand for biases.
    """

    parts: tuple[Columns, ...]
    scale: float
    ending: tuple[float, ...]

    def vectors(self, items: np.ndarray) -> np.ndarray:
        """Rows [B, W] float32 of the model's user table, of items [B, L] padded with -1."""
        found = [np.asarray(part(items)) for part in self.parts]
        ending = np.broadcast_to(np.array(self.ending), (len(items), len(self.ending)))
        return np.concatenate([*found, ending], axis=1, dtype=np.float32) / np.float32(self.scale)


def open_new_users(trained: Trained, longest: int) -> NewUsers:
    """What makes vectors of new users for a model.

    Args:
      trained: the model.
      longest: L, items of a user at most.

    Raises:
      ConfigError: if its user vectors do not come from a user's items.
      ArtifactError: if an earlier version made its factors.
    """
    made = trained.factors
    if made is None:
        raise ConfigError(
            f"{trained}: its user vectors were trained, not made of a user's items; choose "
            f"--arm={CADC_FROZEN.name} or --arm={MF_ALONE.name}"
        )
    configs = _configs(made)
    if len(configs) > 1:
        scales = [Scale(*pair) for pair in _fact(made, "scales", [[float]])]
    else:
        scales = [Scale(1.0, 1.0)]
    factors = open_factors(made.path)
    widths = [config.factors for config in configs]
    if len(scales) != len(configs) or sum(widths) != factors.user.shape[1]:
        raise ArtifactError(f"{made.path}: not the factors of its settings; {manifest.ADVICE}")
    parts, first = [], 0
    for place, (config, scale) in enumerate(zip(configs, scales, strict=True)):
        columns = slice(first, first + config.factors)
        first += config.factors
        if isinstance(config, ALSConfig):
            extent = Extent(*_fact(made, EXTENT, [int]))
            item = factors.item[:, columns]
            part = fold_in.solves(item, config, extent, scale, longest)
            parts.append(_program(part))
        elif (encoder := _encoder(made, factors.encoder, place, scale)) is not None:
            parts.append(_program(fold_in.Sums(encoder)))
        else:
            parts.append(_combining(trained, factors.user[:, columns]))
    return NewUsers(tuple(parts), trained.user_scale, (0, 1) if trained.arm.is_factors else ())


def _program(part: fold_in.Part) -> Columns:
    return lambda items: fold_in.vectors((part,), items)


def _configs(made: Artifact) -> list[ALSConfig | AutoencoderConfig]:
    """Settings of the factorisations side by side, or of the one there is."""
    names = made.settings["method"].split("+")
    settings: Mapping[str, Any] = made.settings["config"]
    configs: list[ALSConfig | AutoencoderConfig] = []
    for name in names:
        try:
            config = METHODS[name](**(settings if len(names) == 1 else settings[name]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{made.path}: no factorisation of this version ({error}); {manifest.ADVICE}"
            ) from None
        if isinstance(config, ALSConfig) and config.feedback == "explicit":
            raise ConfigError("explicit ALS makes vectors of ratings, and items alone have none")
        if not isinstance(config, ALSConfig | AutoencoderConfig):
            raise ConfigError(
                "logistic SGD does not tell what vector a new user's items make: factorise by "
                "'als' or 'autoencoder'"
            )
        configs.append(config)
    return configs


def _fact(made: Artifact, name: str, kind: manifest.Kind) -> Any:
    """A fact of a factorisation that earlier versions did not note."""
    try:
        manifest.check(made.facts.get(name), kind, f"facts.{name}")
    except ValueError as error:
        raise ArtifactError(
            f"{made.path}: {error}, which new users need; an earlier version may have made it: "
            f"{manifest.ADVICE}"
        ) from None
    return made.facts[name]


def _encoder(made: Artifact, own: Array | None, place: int, scale: Scale) -> Array | None:
    """The encoder [I, D] of an autoencoder, alone or in a place side by side, if it is there."""
    parts = made.settings.get("parts")
    if own is not None or parts is None:
        return own
    path = made.path.parent / str(parts[place])
    if not path.is_dir():
        return None
    found = open_factors(open_stage(path, verify=True).path, values=True).encoder
    return None if found is None else np.asarray(found) * np.float32(scale.user)


def _combining(trained: Trained, user: Array) -> Columns:
    """The columns of an autoencoder whose encoder is not there."""
    table = trained.table
    if not table.known:
        raise ConfigError(
            f"{trained}: a compressed data set of clicks has not what makes vectors of an "
            "autoencoder's new users; use the work folder it was made in"
        )
    counts = np.ones(len(table.known["items"]))
    sizes = table.schema.num_users, table.schema.num_items
    known = scipy.sparse.csr_matrix((counts, table.known["items"], table.known["offsets"]), sizes)
    vectors = np.asarray(user)
    return lambda items: fold_in.combine(vectors, known, [row[row >= 0] for row in items])

"""What a run of a configuration would need, on paper: `cost`, given its settings and sizes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration, cost
from cadc_jax.data.table import open_table
from cadc_jax.factorization import als, sgd
from cadc_jax.run.stages import Run, frozen_tables, prepare_settings
from cadc_jax.runtime import artifacts


def plan(this: Run, devices: int, hardware: str, given: Mapping[str, int]) -> None:
    """Shows what the run would need on so many devices of a kind; see `cost`. It runs nothing.

    Args:
      this: its work folder may hold the prepared table, whose sizes then count.
      devices: how many.
      hardware: a key of `cost.HARDWARE`.
      given: sizes to use instead: `rows`, `num_users`, `num_items`, `feature_rows`.

    Raises:
      CadcError: whatever the user has to mend, sizes that are not known among it.
    """
    config = this.config
    configuration.validate(config)
    device, found = cost.hardware(hardware), _prepared_before(this)
    if found is None:
        sizes = configuration.sizes(config, given)
        origin = "options and bounds of the configuration"
    else:
        sizes = cost.sizes_of(open_table(found))
        if given:  # how entries spread is no longer known
            changed: dict[str, Any] = {"user_counts": None, "item_counts": None, **given}
            sizes = dataclasses.replace(sizes, **changed)
        origin = f"{found}{', changed by options' if given else ''}"
    costs = [_factorization_cost(config, sizes, devices)]
    costs += _training_costs(config, sizes, devices)
    group = config.devices.model
    this.say(
        f"{config.name} on {devices} x {hardware}, tables that are split over {group}. A model, "
        f"not a measurement: see docs/scale.md.\nSizes ({origin}): {sizes.rows:,} training rows, "
        f"{sizes.num_users:,} users, {sizes.num_items:,} items, {sizes.feature_rows:,} other "
        f"feature values.\n\n{cost.text(costs, device)}"
    )


def _prepared_before(this: Run) -> pathlib.Path | None:
    """The latest prepared table of this configuration in the work folder, of whatever raw files."""
    wanted = json.loads(json.dumps(prepare_settings(this.config)))
    found = []
    for path in (this.workdir / "prepare").glob(f"*/{artifacts.MANIFEST}"):
        settings = artifacts.settings_of(artifacts.open_artifact(path.parent).path)
        if {name: settings[name] for name in wanted} == wanted:
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _factorization_cost(config: ConfigDict, sizes: cost.Sizes, devices: int) -> cost.Cost:
    settings = configuration.factorization_config(config)
    if isinstance(settings, als.ALSConfig):
        return cost.als(sizes, settings, devices)
    return cost.sgd_factorization(sizes, settings)


def _training_costs(config: ConfigDict, sizes: cost.Sizes, devices: int) -> list[cost.Cost]:
    """One for each model and the arms that cost the same."""
    settings = configuration.factorization_config(config)
    biases = isinstance(settings, sgd.SGDConfig) or settings.feedback == "explicit"
    alike: dict[tuple, list[str]] = {}
    for model in config.models:
        for arm in config.arms:
            rows = sizes.rows if arm == "full" else round(config.rate * sizes.rows)
            alike.setdefault((model, frozen_tables(arm), rows), []).append(arm)
    batch = config.train.batch_rows
    return [
        cost.training(
            f"train {model}, {', '.join(arms)}: {rows:,} rows, batches of {batch:,}",
            configuration.make_model(config, model),
            configuration.train_config(config),
            dataclasses.replace(sizes, rows=rows),
            settings.factors + 2 * biases,
            config.dlrm.embedding_dim,
            frozen,
            devices,
            config.devices.model,
            config.devices.table_bytes,
        )
        for (model, frozen, rows), arms in alike.items()
    ]

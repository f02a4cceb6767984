"""An estimate of what a run needs: `cost`, applied to the settings and sizes of a configuration."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration, cost, sharding
from cadc_jax.data.readers import criteo
from cadc_jax.data.table import open_table
from cadc_jax.errors import ConfigError
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.autoencoder import AutoencoderConfig
from cadc_jax.run.arms import TRAINED
from cadc_jax.run.context import Run
from cadc_jax.run.factor_files import has_biases
from cadc_jax.run.stages import prepare_settings
from cadc_jax.runtime import artifacts, manifest


def plan(this: Run, devices: int, hardware: str, given: Mapping[str, int], hosts: int = 1) -> None:
    """Shows the memory, traffic and time that a run would need; see `cost`. It runs nothing.

    Args:
      this: the run; if its work folder holds the prepared table, sizes come from there.
      devices: number of devices.
      hardware: a key of `cost.HARDWARE`.
      given: sizes to use instead: `rows`, `num_users`, `num_items`, `feature_rows`.
      hosts: number of hosts that have the devices.

    Raises:
      ConfigError: if a setting is wrong, a size is not known, or the hosts cannot have as many
        devices each.
    """
    config = this.config
    configuration.validate(config)
    if devices % hosts:
        raise ConfigError(f"--hosts={hosts}: --devices={devices} is not a multiple of it")
    device, found = cost.hardware(hardware), _prepared_before(this)
    if found is None:
        sizes = _sizes_of_config(config, given)
        origin = "options and bounds of the configuration"
    else:
        sizes = cost.sizes_of(open_table(found))
        if given:  # how entries spread is no longer known
            changed: dict[str, Any] = {"user_counts": None, "item_counts": None, **given}
            sizes = dataclasses.replace(sizes, **changed)
        origin = f"{found}{', changed by options' if given else ''}"
    costs = [
        _factorization_cost(config, method, sizes, devices, device.platform, hosts)
        for method in configuration.methods(config)
    ]
    costs += _training_costs(config, sizes, devices, device)
    of_hosts = f" of {hosts} hosts" if hosts > 1 else ""
    other = "" if hardware == cost.MEASURED else f"; of {hardware} none was measured"
    this.say(
        f"{config.name} on {devices} x {hardware}{of_hosts}. A model, not a measurement: see "
        "docs/scale.md.\nSeconds are within a factor of 2 of those measured on one "
        f"{cost.MEASURED.upper()}{other}.\nSizes ({origin}): {sizes.rows:,} training rows, "
        f"{sizes.num_users:,} users, {sizes.num_items:,} items, {sizes.feature_rows:,} other "
        f"feature values.\n\n{cost.text(costs, device)}"
    )


def _prepared_before(this: Run) -> pathlib.Path | None:
    """The latest prepared table of this configuration in the work folder, from any raw files."""
    wanted = artifacts.plain(prepare_settings(this.config))
    found = []
    for name in this.mirror.names(this.workdir / "prepare"):
        this.mirror.pull(this.workdir / "prepare" / name)
    for path in (this.workdir / "prepare").glob(f"*/{manifest.NAME}"):
        settings = artifacts.open_artifact(path.parent).settings
        if {name: settings.get(name) for name in wanted} == wanted:
            found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _sizes_of_config(config: ConfigDict, given: Mapping[str, int]) -> cost.Sizes:
    """The sizes of data that are not prepared yet; upper bounds where columns are hashed.

    Args:
      config: says which columns there are, and bounds their values by `data.max_vocabulary`.
      given: `rows`, `num_users`, `num_items` and `feature_rows`, or some of them.

    Raises:
      ConfigError: naming the sizes that are not known.
    """
    data = config.data
    criteo_columns = data.source == "criteo"
    contents = (data.user_content, data.item_content)
    if data.source == "movielens" or any(c.file and c.format != "table" for c in contents):
        raise ConfigError(
            "the columns of this data are known once it is read: run with --stage=prepare first"
        )
    dense = len(criteo.DENSE if criteo_columns else data.columns.dense)
    categorical = len(criteo.CATEGORICAL if criteo_columns else data.columns.categorical)
    # A column that alone is the user or the item is no feature as well.
    categorical -= sum(len(names) == 1 for names in (data.user_features, data.item_features))
    user, item = ((len(c.dense), len(c.categorical)) for c in contents)
    columns = user[1] + categorical + item[1]
    known = {} if columns else {"feature_rows": 0}
    if data.max_vocabulary:
        most = data.max_vocabulary + 1  # id 0 is 'out of vocabulary'
        known = {"feature_rows": columns * most}
        known |= {"num_users": most, "num_items": most} if data.task == "click" else {}
    known |= given
    names = ("rows", "num_users", "num_items", "feature_rows")
    if missing := [f"--{name}=N" for name in names if name not in known]:
        raise ConfigError(
            f"sizes of the data are not known: give {', '.join(missing)}, or run with "
            "--stage=prepare first"
        )
    return cost.Sizes(
        task=data.task,
        rows=known["rows"],
        num_users=known["num_users"],
        num_items=known["num_items"],
        feature_rows=known["feature_rows"],
        dense=(user[0], dense, item[0]),
        categorical=(user[1], categorical, item[1]),
        entries=known["rows"],
    )


def _factorization_cost(
    config: ConfigDict, method: str, sizes: cost.Sizes, devices: int, platform: str, hosts: int
) -> cost.Cost:
    settings = configuration.factorization_config(config, method)
    if isinstance(settings, ALSConfig):
        return cost.als(sizes, settings, devices, platform, hosts)
    if isinstance(settings, AutoencoderConfig):
        return cost.autoencoder(sizes, settings, devices, platform, hosts)
    return cost.sgd_factorization(sizes, settings, devices, platform)


def _training_costs(
    config: ConfigDict, sizes: cost.Sizes, devices: int, device: cost.Hardware
) -> list[cost.Cost]:
    """The cost of training each model, once for the arms that cost the same."""
    biases = has_biases(config)
    alike: dict[tuple, list[str]] = {}
    for model in config.models:
        for arm in (TRAINED[name] for name in config.arms):
            rows = round(config.rate * sizes.rows) if arm.takes_sample else sizes.rows
            alike.setdefault((model, arm.frozen, rows), []).append(arm.name)
    batch = config.train.batch_rows
    width = configuration.rank(config) + 2 * biases
    tables = cost.table_shapes(sizes, width, config.dlrm.embedding_dim)
    costs = [
        cost.training(
            f"train {model}, {', '.join(arms)}: {rows:,} rows, batches of {batch:,}",
            configuration.make_model(config, model),
            configuration.train_config(config),
            dataclasses.replace(sizes, rows=rows),
            tables,
            frozen,
            devices,
            configuration.device_config(config),
            device.platform,
        )
        for (model, frozen, rows), arms in alike.items()
    ]
    return [_with_input(x, device.memory) for x in costs]


def _with_input(planned: cost.Cost, memory: float) -> cost.Cost:
    """The cost without rows on the device, if these would take too much of its memory."""
    if planned.memory["training rows"] <= sharding.RESIDENT_SHARE * memory:
        return planned
    left = {name: x for name, x in planned.memory.items() if name != "training rows"}
    note = "rows stream from the host: they take too much of the device's memory"
    return dataclasses.replace(planned, memory=left, notes=(*planned.notes, note))

"""The compressed data set: a folder to train from, elsewhere and without the raw log.

    manifest.json            configuration, facts and checksums, as in every artefact
    schema.json              `table.Schema`, and `statistics.json`, as in a prepared table
    rows.parquet             the kept training rows
    factors/                 `user.parquet` and `item.parquet`: `user` or `item` [N, D], int8 with a
                             `user_scale` or `item_scale` a row, float16 or float32; biases, if any
    factors/unsampled/       with `factor_rows='unsampled'` the factors of the rows that are not
                             kept, to train on the kept ones. The int8 levels of `factors/` are then
                             differences from `quantization.predicted_levels` of these, modulo 256
    factors/encoder.parquet  then, of an autoencoder with fewer items than users: [I, D], in place
                             of `factors/user.parquet`. A user's factors are those of the unsampled
                             rows and the encoder's row of each kept item, added up
    content/                 features, counts and titles of users and items
    vocabularies/            raw values by id - 1
    mask.parquet             `user` and `item` of all training rows of the ranking task, which are
                             no candidates: for evaluation and recommendations alone
    held_out/                validation and test rows

All files are Parquet (`data/packed.py`). To train, `unpack` writes them into the work folder as the
ordinary artefacts `prepare`, `factorize` and `sample`, which everything else reads. Nothing is used
before these were checked.
"""

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cadc_jax.configuration import (
    automatic,
    default_config,
    factorization_settings,
    methods,
    validate,
)
from cadc_jax.data import packed
from cadc_jax.data.columns import ColumnKind
from cadc_jax.data.encoding import open_encoder, read_vocabulary
from cadc_jax.data.raw import FOLD_IN, PARTS, SPLITS, TEST, TRAIN, VALIDATION
from cadc_jax.data.table import (
    KNOWN,
    TITLES,
    Columns,
    Schema,
    content_kinds,
    open_rows,
    open_schema,
    open_table,
    read_columns,
    read_text,
    row_kinds,
    write_columns,
)
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.factorization import autoencoder
from cadc_jax.factorization.interactions import scaled_values
from cadc_jax.factorization.quantization import dequantize, dtype_of, predicted_levels
from cadc_jax.run import stages
from cadc_jax.run.compressed_sizes import FACTORS, MASK, ROWS
from cadc_jax.run.context import Inputs, Run, make_stage
from cadc_jax.run.factor_columns import UNSAMPLED, quantized, side_kinds
from cadc_jax.run.factor_files import has_biases, is_crossed, open_factors, write_factors
from cadc_jax.run.factors import factorize_stage
from cadc_jax.run.fitted_rows import positives
from cadc_jax.run.formats import COMPRESSED, UNPACKED, open_stage
from cadc_jax.runtime import artifacts, durable, manifest
from cadc_jax.runtime.artifacts import Artifact

_SIDES, _ENCODED = ("user", "item"), ("encoder", "item")
_HELD_OUT = (SPLITS[VALIDATION], SPLITS[TEST])
_JSON = ("schema.json", "statistics.json")
_CONTENT, _VOCABULARIES = "content", "vocabularies"
_MASK_KINDS = {"user": ColumnKind(np.int32), "item": ColumnKind(np.int32)}


@dataclasses.dataclass(frozen=True)
class RawSize:
    """Bytes of a raw log: of its files, and of their content, decompressed."""

    stored: int
    unpacked: int


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed data set, opened; its files are not checked yet."""

    made: Artifact
    config: ConfigDict

    @property
    def path(self) -> pathlib.Path:
        """Its folder."""
        return self.made.path


def write_compressed(
    out: pathlib.Path, config: ConfigDict, inputs: Inputs, raw: RawSize
) -> Artifact:
    """Writes the compressed data set to the folder `out`, whole or not at all.

    Raises:
      ConfigError: if the folder is there already.
    """
    durable.check_new(out)
    found = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    config = config.copy_and_resolve_references()
    config.data.path = ""  # where the raw log lies concerns nobody else
    settings = {"stage": COMPRESSED, "format": manifest.FORMAT, "config": config.to_dict()}

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        pack_content(inputs.prepared.path, folder)
        _pack_for_evaluation(inputs.prepared.path, folder)
        pack_rows(inputs.prepared.path, inputs.sample.path, folder)
        pack_factors(inputs.factors, folder)
        return {
            "raw": dataclasses.asdict(raw),
            "facts": {name: made.facts for name, made in found.items()},
            "seconds": {name: made.seconds for name, made in found.items()},
        }

    artifacts.write_artifact(out, settings, write)
    return artifacts.open_artifact(out)


def make_inputs(run: Run, prepared: Artifact) -> Inputs:
    """The stages that follow `prepare` and that a compressed data set is made of."""
    return Inputs(prepared, factorize_stage(run, prepared), stages.sample_stage(run, prepared))


def pack_rows(prepared: pathlib.Path, sample: pathlib.Path, out: pathlib.Path) -> None:
    """Packs the kept rows, a sample of a prepared table, into the folder `out`."""
    kept = dict(read_columns(sample))
    kept.pop("row")  # the rule says which ones they are
    packed.pack(out / ROWS, kept, open_schema(prepared).context)


def pack_content(prepared: pathlib.Path, out: pathlib.Path) -> None:
    """Packs content and vocabularies of a prepared table into the folder `out`."""
    table = open_table(prepared)
    schema = table.schema
    for name in _JSON:
        shutil.copy(prepared / name, out)
    content = {"users": (table.users, schema.user_content)}
    content["items"] = (table.items, schema.item_content)
    for side, (columns, features) in content.items():
        packed.pack(out / _CONTENT / f"{side}.parquet", columns, features)
        if (titles := prepared / side / TITLES).exists():
            packed.pack_values(out / _CONTENT / f"{side}_{TITLES}.parquet", read_text(titles))
    for place in sorted((prepared / _VOCABULARIES).iterdir()):
        name = place.name if place.is_dir() else place.stem
        values = read_vocabulary(prepared, name).values
        packed.pack_values(out / _VOCABULARIES / f"{name}.parquet", values)


def _pack_for_evaluation(prepared: pathlib.Path, out: pathlib.Path) -> None:
    """Packs the mask and the held-out rows of a prepared table."""
    table = open_table(prepared)
    for split in _HELD_OUT:
        file = out / "held_out" / f"{split}.parquet"
        packed.pack(file, table.splits[split], table.schema.context)
    if table.known:
        user, item = table.known_pairs()
        packed.pack(out / MASK, {"user": user, "item": item})


def pack_factors(factors: Artifact, out: pathlib.Path) -> None:
    """Packs factors into a part of the folder `out`."""
    columns = dict(read_columns(factors.path))
    before: dict[str, np.ndarray] = {}
    sides = _SIDES
    if is_crossed(factors):
        before = dict(read_columns(factors.path / UNSAMPLED))
        _pack_sides(before, _SIDES, out / FACTORS / UNSAMPLED)
        if "encoder" in columns and _encoder_is_smaller(len(columns["user"]), len(columns["item"])):
            sides = _ENCODED
    for side in _SIDES:
        if (guess := _guess(before, columns, side)) is not None:
            columns[side] = columns[side] - guess
    _pack_sides(columns, sides, out / FACTORS)


def _encoder_is_smaller(num_users: int, num_items: int) -> bool:
    """Whether an encoder is stored in place of the users' factors of all rows."""
    return num_items < num_users


def _pack_sides(columns: Columns, sides: tuple[str, ...], out: pathlib.Path) -> None:
    for side in sides:
        own = {name: x for name, x in columns.items() if name.startswith(side)}
        packed.pack(out / f"{side}.parquet", own)
    if "global_bias" in columns:
        packed.pack(out / "global_bias.parquet", {"global_bias": columns["global_bias"][None]})


def _guess(before: Columns, columns: Columns, side: str) -> np.ndarray | None:
    """What the int8 levels of a side are stored as differences from, if from anything."""
    scale = f"{side}_scale"
    if scale not in before or scale not in columns:
        return None
    if before[side].shape[0] != len(columns[scale]):
        raise ArtifactError(f"{FACTORS}: two sets of {side} factors of different sizes")
    return predicted_levels(before[side], before[scale], columns[scale])


def open_compressed(path: pathlib.Path, verify: bool = True) -> Compressed:
    """Opens a compressed data set.

    Args:
      path: the folder.
      verify: whether to read all files and compare their checksums.

    Raises:
      ArtifactError: if the folder is no compressed data set, or is damaged.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; make one with 'cadc compress'")
    made = open_stage(path, verify)
    if made.settings["stage"] != COMPRESSED:
        stage = made.settings["stage"]
        raise ArtifactError(f"{path}: not a compressed data set, but of stage {stage!r}")
    config = default_config()  # has fields that are newer than the data set
    config.data.value_scale = "none"  # so it was before there was this field
    try:
        kept = with_tuples(made.settings["config"])
        kept.get("devices", {}).pop("model", None)  # a field that there was
        config.update(kept)
        validate(config)
        if any(automatic(config, method) for method in methods(config)):
            raise ValueError("it has no number for what is 'auto'")
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{path}: its configuration cannot be used: {error}") from None
    return Compressed(made, config)


def with_tuples(value: Any) -> Any:
    """Lists, which JSON made of a configuration's tuples, as tuples again."""
    if isinstance(value, dict):
        return {name: with_tuples(x) for name, x in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def unpack(run: Run, given: Compressed) -> Inputs:
    """The stages `prepare`, `factorize` and `sample` of a run, from a compressed data set.

    Seconds count the run that made the data set, and unpacking.

    Raises:
      ArtifactError: if the data set holds anything but what `write_compressed` writes.
    """
    facts, config = given.made.facts, given.config
    source = {"unpacked": given.made.sha256}

    def stage(name: str, part: str, settings: Mapping[str, Any], work: _Work) -> Artifact:
        def write(folder: pathlib.Path) -> Mapping[str, Any]:
            _checked(given, folder, work)
            return facts["facts"][part]

        made = make_stage(run, name, {**settings, **source}, write, "unpacked")
        return dataclasses.replace(made, seconds=made.seconds + facts["seconds"][part])

    prepared = stage("prepare", "prepared", stages.prepare_settings(config), _unpack_table)
    schema, base = open_schema(prepared.path), {"prepared": prepared.fingerprint}
    method = factorization_settings(config)
    kept = {"rate": config.rate, "seed": config.seed}
    sample = stage("sample", "sample", base | kept, _unpack_rows(schema))
    unpack_factors = _unpack_factors(schema, sample.path)
    factors = stage("factorize", "factors", base | method, unpack_factors)
    return Inputs(prepared, factors, sample)


def check(given: Compressed) -> None:
    """Checks every value of a compressed data set, as `unpack` does.

    Raises:
      ArtifactError: if anything is not what `write_compressed` writes.
    """
    with tempfile.TemporaryDirectory() as name:
        unpack_into(given, pathlib.Path(name))


def write_plain(given: Compressed, out: pathlib.Path) -> Artifact:
    """Writes a compressed data set as plain `.npy` files, for other programs.

    The folder `table/` is a prepared table whose `train/` has the kept rows, and `factors/` has the
    factors in float32 (with `factor_rows='unsampled'` also `factors/unsampled/`).

    Raises:
      ConfigError: if the folder `out` is there already.
      ArtifactError: if the data set holds anything but what `write_compressed` writes.
    """
    durable.check_new(out)

    def write(folder: pathlib.Path) -> Mapping[str, Any]:
        unpack_into(given, folder)
        (folder / "rows").rename(folder / "table" / SPLITS[TRAIN])
        for part in sorted((folder / FACTORS).glob("**/")):
            factors = open_factors(part)
            for file in part.glob("*.npy"):
                file.unlink()
            write_factors(part, factors, bits=32)
        return {"rows": given.made.facts["facts"]["sample"]["rows"]}

    settings = {"stage": UNPACKED, "format": manifest.FORMAT, "compressed": given.made.sha256}
    artifacts.write_artifact(out, settings, write)
    return artifacts.open_artifact(out)


def unpack_into(given: Compressed, folder: pathlib.Path) -> None:
    """Unpacks into the folders `table`, `factors` and `rows` of an empty folder; see `unpack`."""
    parts = {name: folder / name for name in ("table", "factors", "rows")}
    for part in parts.values():
        part.mkdir()
    _checked(given, parts["table"], _unpack_table)
    schema = open_schema(parts["table"])
    _checked(given, parts["rows"], _unpack_rows(schema))
    _checked(given, parts["factors"], _unpack_factors(schema, parts["rows"]))


# Unpacks a part into a folder, and yields what is wrong with it.
_Work = Callable[[Compressed, pathlib.Path], Iterator[str]]


def _checked(given: Compressed, folder: pathlib.Path, work: _Work) -> None:
    """Unpacks a part into `folder`; errors name the compressed data set."""
    try:
        for fault in work(given, folder):
            raise ArtifactError(f"{given.path}: {fault}; {packed.ADVICE}")
    except ArtifactError as error:
        text = str(error).removesuffix(f"; {manifest.ADVICE}")
        if str(folder) not in text:
            raise
        text = text.replace(f"{folder}/", "").replace(f"{folder}: ", "")
        raise ArtifactError(f"{given.path}: {text}; {packed.ADVICE}") from None


def _unpack_table(given: Compressed, folder: pathlib.Path) -> Iterator[str]:
    """Unpacks a prepared table without training rows. Yields what is wrong with it."""
    source, rows = given.path, given.made.facts["facts"]["prepared"]["rows"]
    for name in _JSON:
        try:
            durable.write_json(folder / name, manifest.read_json(source / name))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{source / name}: {error}; {packed.ADVICE}") from None
    schema = open_schema(folder)
    if schema.task != given.config.data.task:
        yield "the task of its table is not that of its configuration"
    for split in _HELD_OUT:
        kinds = row_kinds(schema, held_out=True)
        file = source / "held_out" / f"{split}.parquet"
        if not packed.unpack(file, folder / split, kinds, schema.context) == rows[split] > 0:
            yield f"its {split} rows are not as many as its {manifest.NAME} says, or none"
    if schema.task == "ranking":
        pairs = _unpack_mask(source / MASK, folder / KNOWN, schema)
        if pairs != rows[PARTS[TRAIN]] + rows[PARTS[FOLD_IN]]:
            yield f"its mask has not as many pairs as its {manifest.NAME} says"
    content = {"users": (schema.user_content, schema.num_users)}
    content["items"] = (schema.item_content, schema.num_items)
    for side, (features, ids) in content.items():
        file = source / _CONTENT / f"{side}.parquet"
        packed.unpack(file, folder / side, content_kinds(schema, side), features, ids)
        if (titles := source / _CONTENT / f"{side}_{TITLES}.parquet").exists():
            packed.unpack_values(titles, folder / side, TITLES)
    for file in sorted((source / _VOCABULARIES).glob("*.parquet")):
        packed.unpack_values(file, folder / _VOCABULARIES, file.stem)
    open_table(folder, values=True)
    open_encoder(folder)


def _unpack_mask(file: pathlib.Path, folder: pathlib.Path, schema: Schema) -> int:
    """Unpacks the mask as `Table.known`; returns its number of pairs."""
    pairs = packed.unpack(file, folder, _MASK_KINDS)
    found = read_columns(folder)
    user, items = np.array(found["user"]), np.array(found["item"])
    if np.any(np.diff(user) < 0) or (len(user) and not 0 <= user[0] <= user[-1] < schema.num_users):
        raise ArtifactError(f"{file}: the users do not ascend; {packed.ADVICE}")
    counts = np.bincount(user, minlength=schema.num_users)
    shutil.rmtree(folder)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    write_columns(folder, {"offsets": offsets, "items": items})
    return pairs


def _unpack_rows(schema: Schema) -> _Work:
    """Unpacks the kept rows of a table. Yields what is wrong with them."""

    def work(given: Compressed, folder: pathlib.Path) -> Iterator[str]:
        facts, kinds = given.made.facts["facts"], row_kinds(schema)
        rows = packed.unpack(given.path / ROWS, folder, kinds, schema.context)
        if not facts["prepared"]["rows"]["train"] >= rows == facts["sample"]["rows"] > 0:
            yield f"its training rows are not as many as its {manifest.NAME} says, or none"
        open_rows(folder, schema, values=True)

    return work


def _unpack_factors(schema: Schema, rows: pathlib.Path) -> _Work:
    """Unpacks the factors of a table's users and items. Yields what is wrong with them.

    Args:
      schema: of the table.
      rows: the unpacked kept rows, checked.
    """

    def work(given: Compressed, folder: pathlib.Path) -> Iterator[str]:
        source, config = given.path / FACTORS, given.config
        crossed = config.factor_rows == "unsampled"
        if (source / UNSAMPLED).exists() != crossed:
            yield f"its factors do not go with factor_rows={config.factor_rows!r}"
        before: Columns = {}
        encoded = crossed and config.factorization == "autoencoder"
        encoded = encoded and _encoder_is_smaller(schema.num_users, schema.num_items)
        if crossed:
            _unpack_sides(source / UNSAMPLED, _SIDES, folder / UNSAMPLED, config)
            before = read_columns(folder / UNSAMPLED)
        _unpack_sides(source, _ENCODED if encoded else _SIDES, folder, config)
        if encoded:
            users = _users_with_kept_rows(folder, schema, rows, config.data.value_scale)
            write_columns(folder, quantized("user", users, config.factor_bits))
            before = {name: x for name, x in before.items() if name.startswith("item")}
        columns = read_columns(folder)
        for side in _SIDES:
            if (guess := _guess(before, columns, side)) is not None:
                write_columns(folder, {side: columns[side] + guess})
        for part in (folder, folder / UNSAMPLED) if crossed else (folder,):
            found = open_factors(part, values=True)
            if (len(found.user), len(found.item)) != (schema.num_users, schema.num_items):
                yield f"{FACTORS}: of other users or items than the table"

    return work


def _users_with_kept_rows(
    folder: pathlib.Path, schema: Schema, rows: pathlib.Path, value_scale: str
) -> np.ndarray:
    """User factors of all rows, from those of the unsampled ones, an encoder and the kept rows."""
    columns, kept = read_columns(folder), read_columns(rows)
    unsampled = open_factors(folder / UNSAMPLED, values=True)
    encoder = dequantize(columns["encoder"], columns.get("encoder_scale"))
    wanted = (schema.num_users, schema.num_items, *unsampled.item.shape)
    if (len(unsampled.user), len(encoder), *encoder.shape) != wanted:
        raise ArtifactError(f"{FACTORS}/encoder.parquet: of other users, items or factors")
    if not np.isfinite(encoder).all():
        raise ArtifactError(f"{FACTORS}/encoder.parquet: a number is not finite")
    user, item = positives(kept["user"], kept["item"], kept.get("label"))
    value = scaled_values(kept["value"], value_scale) if "value" in kept else None
    return autoencoder.add_rows(dataclasses.replace(unsampled, encoder=encoder), user, item, value)


def _unpack_sides(
    source: pathlib.Path, sides: tuple[str, ...], folder: pathlib.Path, config: ConfigDict
) -> None:
    """Unpacks one set of factors, which has the bits and biases that the configuration says."""
    dtype, biased = dtype_of(config.factor_bits), has_biases(config)
    for side in sides:
        packed.unpack(source / f"{side}.parquet", folder, side_kinds(side, dtype, None, biased))
    if biased:
        kinds = {"global_bias": ColumnKind(np.float32)}
        if packed.unpack(source / "global_bias.parquet", folder, kinds) != 1:
            raise ArtifactError(f"{source}: not one global bias; {packed.ADVICE}")
        write_columns(folder, {"global_bias": read_columns(folder)["global_bias"][0]})

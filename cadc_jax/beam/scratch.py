"""Files that the workers of a pipeline hand to each other, in a folder that all of them reach.

A file has a name of its own each time it is written, and only results of a pipeline name files. So
a piece of work that is done twice, or breaks off, leaves a file that nobody reads.
"""

import io
import json
import pickle
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from cadc_jax.data.prepare import EncodedRows
from cadc_jax.data.vocabulary import Counter


def new_folder(parent: str) -> str:
    """Makes a new folder in the folder `parent`, a path or a URL."""
    FileSystems.mkdirs(folder := FileSystems.join(parent, f"cadc-{uuid.uuid4().hex}"))
    return folder


def delete(*paths: str) -> None:
    """Deletes files and folders, as far as they are there."""
    FileSystems.delete([path for path in paths if FileSystems.exists(path)])


def write_rows(folder: str, rows: pa.Table) -> str:
    """Writes a table to a new file in the folder, and returns the file."""
    file = _new_file(folder, "arrow")
    with FileSystems.create(file) as out, pa.ipc.new_file(out, rows.schema) as writer:
        writer.write_table(rows)
    return file


def read_rows(file: str) -> pa.Table:
    """Reads what `write_rows` wrote."""
    return pa.ipc.open_file(pa.py_buffer(_read(file))).read_all()


def write_counter(folder: str, counter: Counter) -> str | None:
    """Writes the counts of a column to a new file, and returns it; None if there are too many."""
    counter.merge_pending()
    return None if counter.merged is None else write_rows(folder, counter.merged)


def read_counter(file: str | None, max_values: int) -> Counter:
    """Reads what `write_counter` wrote."""
    return Counter.of_counts(max_values, None if file is None else read_rows(file))


def write_encoded(folder: str, rows: EncodedRows) -> str:
    """Writes encoded rows to a new file in the folder, and returns the file."""
    file, columns = _new_file(folder, "npz"), io.BytesIO()
    flat: dict[str, Any] = {
        f"{part}/{name}": x for part, of_part in rows.items() for name, x in of_part.items()
    }
    np.savez(columns, **flat)
    with FileSystems.create(file) as out:
        out.write(columns.getbuffer())
    return file


def read_encoded(file: str) -> EncodedRows:
    """Reads what `write_encoded` wrote."""
    rows: dict[str, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(_read(file)), allow_pickle=False) as columns:
        for key in columns.files:
            part, _, name = key.partition("/")
            rows.setdefault(part, {})[name] = columns[key]
    return rows


def write_object(folder: str, value: Any) -> str:
    """Pickles a value into a new file in the folder, and returns the file."""
    file = _new_file(folder, "pickle")
    with FileSystems.create(file) as out:
        pickle.dump(value, out)
    return file


def read_object(file: str) -> Any:
    """Reads what `write_object` wrote. Beam itself sends pickles between its workers."""
    return pickle.loads(_read(file))


def write_results(results: list, file: str) -> None:
    """Writes the results of a pipeline as JSON."""
    with FileSystems.create(file) as out:
        out.write(json.dumps(results).encode())


def read_results(file: str) -> list:
    """Reads what `write_results` wrote."""
    return json.loads(_read(file))


def _new_file(folder: str, kind: str) -> str:
    return FileSystems.join(folder, f"{uuid.uuid4().hex}.{kind}")


def _read(file: str) -> bytes:
    with FileSystems.open(file) as opened:
        return opened.read()

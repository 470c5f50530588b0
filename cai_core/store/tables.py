"""Tables as Parquet with declared columns, written and read in chunks of constant memory.

Column types: "str", "int", "float", "bool", "messages" (a list of role/content), "json" (any JSON, stored as text).
Every column may be null. The files load with ``datasets.load_dataset("parquet", ...)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core.store.canonical import canonical

_CHUNK = 1000  # rows held in memory at once; our choice, some megabytes of text


def write_table(path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write ``rows`` and return their number. A column that a row lacks is null; an undeclared one is an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {
        "str": pa.string(),
        "json": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "messages": pa.list_(message),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    source = iter(rows)
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := [_encode(columns, row) for row in islice(source, _CHUNK)]:
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count


def read_table(path: Path, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, with ``columns`` alone; one that an older table does not have is null."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_CHUNK, columns=there):
            for record in batch.to_pylist():
                yield {name: _read(kind, record.get(name)) for name, kind in columns.items()}


def _read(kind: str, value: Any) -> Any:
    return json.loads(value) if kind == "json" and value is not None else value


def _encode(columns: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(row) - set(columns)
    if unknown:
        raise ValueError(f"undeclared columns {sorted(unknown)}")
    return {name: _value(kind, row.get(name)) for name, kind in columns.items()}


def _value(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "json":
        return canonical(value)
    if kind == "str":
        return _text(value)
    if kind == "messages":
        return [{"role": turn["role"], "content": _text(turn["content"])} for turn in value]
    return value


def _text(value: str) -> str:
    # Arrow strings are UTF-8; a lone surrogate would stop the whole table, so it is shown as an escape
    return value.encode("utf-8", "backslashreplace").decode()

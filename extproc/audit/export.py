"""Records as files: lines of JSON, and Parquet (`pip install 'extproc[parquet]'`)."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from extproc.audit.record import Message, Record, Verdict, encode

_GROUP: Final = 1000
"""Rows of a row group."""


def jsonl(records: Iterable[Record], out: BinaryIO) -> int:
    """A line for each, as `audit.record.decode` reads it. How many."""
    count = 0
    for record in records:
        out.write(encode(record) + b"\n")
        count += 1
    return count


def parquet(records: Iterable[Record], path: Path) -> int:
    """A row for each; ``time`` is a timestamp in UTC, ``metadata`` JSON. How many. Raises ModuleNotFoundError."""
    import pyarrow.parquet  # noqa: PLC0415 - heavy, and an extra

    schema = _schema()
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(iter(records)):
            writer.write_table(pyarrow.Table.from_pylist([_row(record) for record in group], schema))
            count += len(group)
    return count


def _groups(records: Iterator[Record]) -> Iterator[list[Record]]:
    while group := list(islice(records, _GROUP)):
        yield group


def _schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}

    def rows_of(kind: type[msgspec.Struct]) -> Any:
        fields = msgspec.structs.fields(kind)
        return pa.list_(pa.struct([(field.name, plain.get(field.type, pa.string())) for field in fields]))

    special = {
        "time": pa.timestamp("us", tz="UTC"),
        "verdicts": rows_of(Verdict),
        "request": rows_of(Message),
        "answer": rows_of(Message),
        "images": pa.list_(pa.string()),
        "first_byte": pa.float64(),
    }
    fields = msgspec.structs.fields(Record)
    return pa.schema([(field.name, special.get(field.name) or plain.get(field.type, pa.string())) for field in fields])


def _row(record: Record) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(record),
        "time": round(record.time * 1_000_000),
        "verdicts": [msgspec.structs.asdict(each) for each in record.verdicts],
        "request": [msgspec.structs.asdict(each) for each in record.request],
        "answer": [msgspec.structs.asdict(each) for each in record.answer],
        "metadata": msgspec.json.encode(record.metadata).decode(),
    }

"""Row groups of Parquet files to columns, file by file: files of one source may differ in columns and types."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import FileTask, open_bytes
from recsys_batch.sources.raw_rows import RawRows

_ROWS = 65_536


def read_parquet_schema(task: FileTask, content: bytes | None = None) -> pa.Schema:
    """Read a file's schema, and the columns of the folders that it is in as text. Raises SourceError where it is no Parquet file."""
    with open_bytes(task.file, content) as stream:
        schema = _open(task, stream).schema_arrow
    for name in task.file.partition:
        schema = _drop(schema, name).append(pa.field(name, pa.string()))
    return schema


def read_parquet_rows(task: FileTask, paths: Sequence[str], content: bytes | None = None, *, whole: bool = False) -> Iterator[RawRows]:
    """Read the rows of a file.

    Args:
        paths: columns to read, or paths with dots into structs. A file that lacks one gives rows without it.
        whole: read all other columns, too.

    Raises SourceError where the file is damaged, or a text column holds bytes that are no UTF-8.
    """
    partition = task.file.partition
    with open_bytes(task.file, content) as stream:
        file = _open(task, stream)
        present = [field.name for field in file.schema_arrow]
        heads = [name for name in present if whole or any(_is_under(name, path) for path in paths)]
        start = 0
        try:
            for batch in file.iter_batches(batch_size=_ROWS, columns=heads, use_threads=False):
                columns = {name: check_text(name, column) for name, column in zip(heads, batch.columns, strict=True)}
                columns |= nested_columns(columns, paths)
                for name, value in partition.items():
                    columns[name] = pa.array([value] * len(batch), pa.string())
                positions = np.arange(start, start + len(batch), dtype=np.int64)
                yield RawRows(positions, columns, pa.nulls(len(batch), pa.string()))
                start += len(batch)
        except SourceError as error:
            raise SourceError(f"{task.file.name}: {error}") from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise SourceError(f"{task.file.name} cannot be read: {' '.join(str(error).split())}") from None


def find_column_type(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Find the type of a column or of a path with dots into structs and lists of structs; None where the schema lacks it."""
    if path in schema.names:
        return schema.field(path).type
    for i, character in enumerate(path):
        if character == "." and path[:i] in schema.names:
            kind = _element(schema.field(path[:i]).type)
            return find_column_type(pa.schema(list(kind)), path[i + 1 :]) if pa.types.is_struct(kind) else None
    return None


def plain(column: pa.Array) -> pa.Array:
    """Convert a column to one of the layouts that ``values`` knows: no dictionaries, no views, no extension types."""
    if isinstance(column.type, pa.ExtensionType | pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.binary())
    return column


def _open(task: FileTask, stream: pa.NativeFile) -> pq.ParquetFile:
    try:
        # INT96, the timestamp of older writers, has nanoseconds that reach from 1677 to 2262 only.
        return pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{task.file.name} is not a Parquet file: pass the --format that it has (csv, jsonl, parquet, delta, movielens) "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def check_text(name: str, column: pa.Array) -> pa.Array:
    """Make a column plain and check its text, as readers of Parquet take a writer's word for UTF-8.

    Raises SourceError where text holds bytes that are none.
    """
    column = plain(column)
    if not pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        raise SourceError(f"column {name} says that it is text, and holds bytes that are no UTF-8: write it again as text") from None


def nested_columns(columns: Mapping[str, pa.Array], paths: Sequence[str]) -> dict[str, pa.Array]:
    """Take the values at paths with dots out of columns of structs and of lists of structs, as far as there are such columns."""
    found = {path: _nested(columns, path) for path in paths if path not in columns and "." in path}
    return {path: column for path, column in found.items() if column is not None}


def _nested(columns: Mapping[str, pa.Array], path: str) -> pa.Array | None:
    for i, character in enumerate(path):
        if character == "." and path[:i] in columns:
            return _field_of(columns[path[:i]], path[i + 1 :])
    return None


def _field_of(column: pa.Array, path: str) -> pa.Array | None:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = _field_of(column.flatten(), path)
        if values is None:
            return None
        lengths = np.asarray(pc.fill_null(column.value_lengths(), 0), dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())
    if not pa.types.is_struct(kind):
        return None
    head = next((field.name for field in kind if _is_under(field.name, path)), None)
    if head is None:
        return None
    values = plain(pc.struct_field(column, [head]))
    return values if head == path else _field_of(values, path[len(head) + 1 :])


def _element(kind: pa.DataType) -> pa.DataType:
    return _element(kind.value_type) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind


def _is_under(name: str, path: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _drop(schema: pa.Schema, name: str) -> pa.Schema:
    return schema.remove(schema.get_field_index(name)) if name in schema.names else schema

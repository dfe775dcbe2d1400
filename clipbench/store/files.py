"""Single files of a store: they are written whole or not at all, and damage to them is detected.

Knows nothing of commits, pages or cells.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clipbench import schema

TEMPORARY = ".writing-"
DIGITS = 12  # of SHA-256, at the end of a file's name
TICK = 2_000_000_000  # ns: no file system's clock is coarser; what is younger may change unseen
LEVEL = 3  # of zstd: 9 takes twice as long for a hundredth of the bytes
GROUP = 1 << 20  # rows that are compressed together
PIECE = 1 << 16  # rows that are taken apart at a time, where not all are held

Row = Mapping[str, Any]
Rows = Sequence[Row] | Mapping[str, Any]


class Damaged(Exception):  # noqa: N818 - an answer, not an error
    """What is wrong with a file; the message continues a sentence that begins with its name."""


# ------------------------------------------------------------------------------------------ writing


def write_table(
    folder: Path,
    table: str,
    shard: str,
    rows: Rows | pa.Table,
    metadata: Mapping[bytes, bytes],
) -> Path:
    """The immutable file ``SHARD-HASH.parquet`` of some rows or columns, synced to disk.

    :raises OSError: it cannot be written; then nothing of it is left.
    """
    return write_groups(folder, table, shard, [_arrow(table, rows)], metadata)


def write_groups(
    folder: Path,
    table: str,
    shard: str,
    groups: Iterable[pa.Table],
    metadata: Mapping[bytes, bytes],
) -> Path:
    """The same of rows that come one group after the other, and are not held."""
    temporary, count = folder / f"{TEMPORARY}{shard}-{os.getpid()}", 0
    held = schema.arrow(table).with_metadata(dict(metadata))
    # A column of noise shrinks if its bytes are split into streams; the values of `changed`, which
    # counts elements, repeat.
    noise = [
        column.name
        for column in schema.TABLES[table]
        if column.type == schema.FLOAT and column.name != "changed"
    ]
    floats = noise if table == "curves" else []
    try:
        with temporary.open("wb") as file:
            with pq.ParquetWriter(
                file,
                held,
                compression="zstd",
                compression_level=LEVEL,
                write_page_checksum=True,
                use_dictionary=[
                    column.name for column in schema.TABLES[table] if column.name not in floats
                ],
                use_byte_stream_split=floats or False,
            ) as writer:
                for rows in groups:
                    writer.write_table(rows.cast(schema.arrow(table)).cast(held))
                    count += len(rows)
            file.flush()
            os.fsync(file.fileno())
        if pq.read_metadata(temporary).num_rows != count:
            raise OSError(f"{temporary}: the file written does not read back")
        final = folder / f"{shard}-{_digest(temporary)}.parquet"
        os.replace(temporary, final)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return final


def grouped(pieces: Iterable[pa.Table], size: int = GROUP) -> Iterator[pa.Table]:
    """The same rows, ``size`` at a time."""
    held, count = list[pa.Table](), 0
    for rows in pieces:
        start = 0
        while count + len(rows) - start > size:
            yield pa.concat_tables([*held, rows.slice(start, size - count)])
            start, held, count = start + size - count, [], 0
        held.append(rows.slice(start))
        count += len(rows) - start
    if count:
        yield pa.concat_tables(held)


def _arrow(table: str, rows: Rows | pa.Table) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, Mapping):
        # what came later need not be known to whoever writes
        size = len(next(iter(rows.values()), ()))
        absent = {
            column.name: pa.nulls(size, column.type)
            for column in schema.TABLES[table]
            if column.later and column.name not in rows
        }
        return pa.Table.from_pydict({**rows, **absent}, schema.arrow(table))
    return pa.Table.from_pylist(list(rows), schema.arrow(table))


def replace_text(path: Path, text: str) -> None:
    """Replace a file by one that holds ``text``, atomically and synced to disk."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ reading


def content(path: Path) -> bytes:
    """The bytes of a regular file; nothing else is opened, for a pipe would never end.

    :raises Damaged: it is no regular file, or cannot be read.
    """
    _regular(path)
    return path.read_bytes()


def _regular(path: Path) -> os.stat_result:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise Damaged("is a link to nothing" if path.is_symlink() else "is missing") from None
    except OSError as error:  # a link to itself, a name that is too long
        raise Damaged(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(about.st_mode):
        raise Damaged("is no regular file")
    return about


class State(NamedTuple):
    """What differs whenever a file's content does, as far as its folder tells."""

    device: int
    number: int
    size: int
    modified: int
    changed: int
    settled: bool  # the next change will have another time

    @classmethod
    def of(cls, about: os.stat_result) -> State:
        newest = max(about.st_mtime_ns, about.st_ctime_ns)
        return cls(
            about.st_dev,
            about.st_ino,
            about.st_size,
            about.st_mtime_ns,
            about.st_ctime_ns,
            settled=time.time_ns() - newest > TICK,
        )


_sound = set[tuple[str, State]]()  # hash in the name and state of the files that agreed with it


def forget() -> None:
    """Take no file for sound because it was so before."""
    _sound.clear()


def _opened(path: Path) -> pa.NativeFile:
    """A file that is what its name says. In a process it is hashed once, unless it changes.

    :raises Damaged: it is not.
    """
    state, named = State.of(_regular(path)), path.stem.rpartition("-")[2]
    if (named, state) not in _sound:
        if _digest(path) != named:
            raise Damaged("does not match the hash in its name")
        if state.settled:
            _sound.add((named, state))
    return pa.OSFile(str(path))


def table_of(
    path: Path, table: str, columns: Sequence[str] | None = None, cells: Sequence[str] | None = None
) -> pa.Table:
    """The rows of a file in the table's own columns and types, with the file's metadata.

    Its hash covers every byte, the footer too.

    :param columns: those that are wanted; no other is taken apart.
    :param cells: the cells whose rows are wanted.
    :raises Damaged: the file is not what its name says, or is of another table.
    """
    with _told(), _opened(path) as file:
        held = pq.read_schema(file).names if columns is not None else ()
        file.seek(0)
        stored = pq.read_table(
            file,
            columns=None if columns is None else [name for name in columns if name in held],
            filters=None if cells is None else [("cell", "in", cells)],
            page_checksum_verification=True,
        )
    return _fitted(stored, table, columns)


def pieces_of(path: Path, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a file as `table_of` gives them, at most `PIECE` at a time.

    :raises Damaged: as `table_of` does, before the first piece or at any of them.
    """
    with _told(), _opened(path) as file:
        stored = pq.ParquetFile(file, page_checksum_verification=True)
        held = stored.schema_arrow
        if columns is not None:
            held = pa.schema([one for one in held if one.name in columns], held.metadata)
        if not stored.metadata.num_rows:
            yield _fitted(held.empty_table(), table, columns)
        for batch in stored.iter_batches(PIECE, columns=held.names):
            rows = pa.Table.from_batches([batch], held)
            yield _fitted(rows, table, columns)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"cannot be read ({_short(error)})") from None


def _fitted(stored: pa.Table, table: str, columns: Sequence[str] | None) -> pa.Table:
    wanted = schema.arrow(table)
    if columns is not None:
        wanted = pa.schema([wanted.field(name) for name in columns])
    try:
        return (
            _complete(stored, table)
            .select(wanted.names)
            .cast(wanted)
            .replace_schema_metadata(stored.schema.metadata)
        )
    except (pa.ArrowException, KeyError) as error:
        raise Damaged(f"is of another schema ({_short(error)})") from None


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of the table in whose folder it lies, every row looked at; None if
    nothing is.
    """
    try:
        for _ in pieces_of(path, path.parent.name):
            pass
    except Damaged as wrong:
        return str(wrong)
    return None


def outer_damage(path: Path) -> str | None:
    """The same by the hash in its name and by its schema, as good as `damage_of` for what clipbench
    has written: the hash covers every row.
    """
    try:
        with _told(), _opened(path) as file:
            _fitted(pq.read_schema(file).empty_table(), path.parent.name, None)
    except Damaged as wrong:
        return str(wrong)
    return None


def hash_damage(path: Path) -> str | None:
    """What is wrong with a file by the hash in its name, without its rows; None if nothing is."""
    try:
        _opened(path).close()
    except Damaged as wrong:
        return str(wrong)
    return None


def _complete(rows: pa.Table, table: str) -> pa.Table:
    """A file's rows with the columns that came later than the file."""
    for column in schema.TABLES[table]:
        if column.later and column.name not in rows.column_names:
            rows = rows.append_column(column.name, pa.nulls(len(rows), column.type))
    return rows


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split()).strip("'\"")[:200]


# -------------------------------------------------------------------------------------------- aside


def set_aside(path: Path, folder: Path) -> None:
    """Move a file, a link or a pipe into ``folder``; a number is added to its name if the name
    is taken there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, target = 1, folder / path.name
    while os.path.lexists(target):
        number, target = number + 1, folder / f"{path.name}.{number}"
    os.replace(path, target)

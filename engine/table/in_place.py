"""An open table as the compiled kernel reads it: blocks in place in the mapping.

Runs in: workers, supervisor in inline mode.
Invariants: (1) the index is checked before it is used, a block whenever it is opened; (2) what is
opened here is let go of before its table is closed, or the mapping stays until it is.
Fails with: as the reader.
"""

from __future__ import annotations

from typing import Any

from meles.engine.crypt.file_cipher import What
from meles.engine.errors import ClosedError, CorruptionError
from meles.engine.table.reader import Table


def open_in_place(table: Table, kernel: Any) -> Any:
    """TableBlocks of this kernel for a scan, so without a filter, which is not even read."""
    footer = table._footer
    index = table._section(footer.index, "table index", What.INDEX)
    try:
        return kernel.TableBlocks(
            table._map,
            table._seed,
            index,
            footer.blocks,
            footer.bloom.offset,
            b"",
            0,
            lambda number, _scanning: table.load(number).raw,
            lambda what, offset: CorruptionError(
                what, path=table.path, offset=offset, kind="table block"
            ),
            lambda: ClosedError(f"table {table.path} is closed"),
            sealed=table._cipher is not None,
        )
    except ValueError as error:
        raise CorruptionError(
            str(error), path=table.path, offset=footer.index.offset, kind="table index"
        ) from error

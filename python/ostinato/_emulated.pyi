from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]

def run(
    action: str, cell: int, itemsize: int, addresses: dict[str, Any], reverse_order: bool
) -> int: ...
def plain_cells() -> dict[str, dict[str, Any]]: ...
def plain_run(
    cell: str,
    steps: int,
    batch: int,
    input: int,
    hidden: int,
    projected: int,
    heads: int,
    arrays: dict[str, _Array],
    dy: _Array,
    dstates: _Array,
) -> tuple[_Array, _Array, dict[str, _Array]]: ...

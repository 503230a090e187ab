"""Types of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An array of numbers.
Array = NDArray[Any]
#: Which rows of a matrix: all, or these.
Rows = slice | NDArray[np.intp]

"""Write named arrays as safetensors files. The only module that calls safetensors' save functions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their names, each C-contiguous and in its own dtype.

    ``safetensors.numpy.save_file`` writes an array's memory under its shape: a transposed or strided array would be read back as other
    values, without an error.
    """
    save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, path)

"""What a training step of the reference backend computes in the native sidecar, between its products, in float32.

`native/training.h` says what its functions do: in one pass over a row what takes numpy a dozen. Where the sidecar was
not built, and in float64, `backend_cpu_ref_kernels` does the same in numpy. Arrays that are written are contiguous.
"""

import numpy as np

from alpha.backend_cpu_ref_primitives import NumpyArray
from alpha.backend_cpu_ref_sidecar import address, function


def losses(
    logits: NumpyArray, ids: NumpyArray, weights: NumpyArray, soft_cap: float, gradients: bool, out: NumpyArray
) -> None:
    """Writes each row's loss to `out` [rows, 1]; logits [rows, V] become their gradients, or lose their meaning."""
    ids = np.ascontiguousarray(ids, np.int32)
    function("training_losses")(
        address(logits), address(ids), address(weights), soft_cap, gradients, address(out), *logits.shape
    )

"""One place that makes torch repeat itself."""

from __future__ import annotations

import os


def settle(seed: int, threads: int) -> None:
    """Fix seeds, the thread count and the algorithms.

    The number of threads decides how sums are split and so can change their last bit.  On a GPU some operations have no
    deterministic form (a cumulative sum in ``generate``, for one): there torch warns and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import random

    import numpy as np
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the libraries below draw from the global state
    torch.manual_seed(seed)

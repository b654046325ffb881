"""How like the true next frame is the generated one, beyond squared error?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.train.frames import as_input


def ssim(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of each pair, uint8 [n, height, width, 3] both: float64 [n], 1 for equal frames.

    Wang et al. 2004: Gaussian window of 11 × 11, sigma 1.5, the mean over the three colours.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # imports slowly

    # In float32 equal flat pictures come out as 0.9997: variances are differences of large numbers.
    shown, true = (as_input(torch.from_numpy(np.ascontiguousarray(frames))).double() for frames in (made, real))
    found = structural_similarity_index_measure(shown, true, data_range=1.0, reduction="none")
    assert isinstance(found, torch.Tensor)
    return found.double().numpy()

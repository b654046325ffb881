"""How like the true next frame is the generated one, beyond squared error?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.train.frames import as_input

AT_A_TIME = 16  # pairs: each takes 100 MB while it is compared, at 160 x 120


def ssim(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of each pair, uint8 [n, height, width, 3] both: float64 [n], 1 for equal frames.

    Wang et al. 2004: Gaussian window of 11 × 11, sigma 1.5, the mean over the three colours.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # imports slowly

    # In float32 equal flat pictures come out as 0.9997: variances are differences of large numbers.
    scores = []
    for at in range(0, len(real), AT_A_TIME):
        part = (np.ascontiguousarray(frames[at : at + AT_A_TIME]) for frames in (made, real))
        shown, true = (as_input(torch.from_numpy(frames)).double() for frames in part)
        found = structural_similarity_index_measure(shown, true, data_range=1.0, reduction="none")
        assert isinstance(found, torch.Tensor)
        scores.append(found.reshape(-1).numpy())
    return np.concatenate(scores)

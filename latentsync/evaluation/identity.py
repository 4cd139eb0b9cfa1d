"""Identity similarity by the user's face-recognition network."""

import numpy as np
import torch.nn.functional as F

from ..errors import UserError
from ..face.align import resample
from .image_metrics import pixels
from .networks import Network

SIDE = 112
FIVE = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
"""Eyes, nose tip and mouth corners as face-recognition networks expect them (ArcFace, Deng et al. 2019)."""
LEFT_EYE, RIGHT_EYE, TIP, LEFT_CORNER, RIGHT_CORNER = slice(36, 42), slice(42, 48), 30, 48, 54


def face_112(frame: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """(112, 112, 3) uint8 RGB: eyes, nose and mouth moved to FIVE by the least-squares similarity transform."""
    eyes = (points68[LEFT_EYE].mean(0), points68[RIGHT_EYE].mean(0))
    five = np.stack((*eyes, points68[TIP], points68[LEFT_CORNER], points68[RIGHT_CORNER]))
    # points as complex numbers make it a linear regression, w = a · z + b
    z, w = five[:, 0] + 1j * five[:, 1], FIVE[:, 0] + 1j * FIVE[:, 1]
    centered = z - z.mean()
    a = np.vdot(centered, w - w.mean()) / np.vdot(centered, centered)
    b = w.mean() - a * z.mean()
    return resample(frame, np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]), SIDE)


def identity_similarity(network: Network, made: np.ndarray, true: np.ndarray) -> float:
    """Cosine of two faces from face_112(), -1 … 1. network: (N, 3, 112, 112) RGB in [-1, 1] to (N, D)."""
    out = network(pixels([made, true]) / 127.5 - 1)
    if out.ndim != 2 or len(out) != 2:
        raise UserError(f"{network.name} gave {tuple(out.shape)}; it must give one vector for each face.")
    return float(F.cosine_similarity(out[0], out[1], dim=0, eps=1e-12))

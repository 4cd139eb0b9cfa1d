"""The generated mouth back into the frame: feathered inside the mask, in the face's own box, nothing else touched."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .align import crop_matrix, face_size, resample, rescaled
from .mask import mouth_mask

FEATHER = 10 / 256
"""Width of the soft edge as a share of the crop: the mask begins 10 to 20 pixels of 256 above the upper lip."""
MATCH_RING = 12 / 256
"""Width of the ring inside the mask's edge where generated and original should have the same color."""
MATCH_REACH = 0.15  # how far (share of the crop, one sigma) a difference on the ring is carried inwards
MATCH_LIMIT = 24.0
"""Larger differences (of 255) are another thing in the picture, not another color, and count as this much."""
MATCH_GRID = 32
READ_ABOVE = 8 / 256
"""How far above the mask `paste` reads, as a share of the crop: a cell of MATCH_GRID, and what the kernels that shrink
a crop reach, for faces down to some 60 pixels of the frame. Smaller ones see a little of the row repeated upwards."""


@dataclass(frozen=True)
class Look:
    """How a crop is put back. match: take away the slow color difference along the mask's edge. grow: pixels of the
    frame by which the mask reaches beyond the network's own (below 0: stays inside it). feather: width of the soft edge
    in pixels of the frame; 0: FEATHER of the crop."""

    match: bool = True
    grow: float = 0.0
    feather: float = 0.0


@dataclass(frozen=True)
class Layer:
    """What is laid over a frame: pixels (h, w, 3) float32 0..255, alpha (h, w) float32, at box (rows, columns)."""

    box: tuple[slice, slice]
    pixels: np.ndarray
    alpha: np.ndarray


def paste(
    frame: np.ndarray,
    crop: np.ndarray,
    matrix: np.ndarray,
    *,
    resolution: int,
    weight: float = 1.0,
    reference: bool = False,
    match: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Put the repainted part of a crop back into its frame.

    frame: (H, W, 3) uint8. crop: (R, R, 3) RGB, uint8 or float in 0..255. matrix: (2, 3) from align_matrices.
    weight: 0..1, the strength of the whole (fades). match: take away the slow color difference along the mask's edge.
    Returns the new frame and the mask (H, W) float32 of what was mixed in; where it is 0 the frame is bit-identical.
    reference: the public implementation's blend of the whole face box instead (no color match).
    """
    if reference:
        return _paste_reference(frame, crop, matrix, resolution, weight)
    mask = np.zeros(frame.shape[:2], np.float32)
    out = frame.copy()
    over = layer(frame, crop, matrix, resolution=resolution, weight=weight, look=Look(match))
    if over is not None:
        mask[over.box] = over.alpha
        mixed = frame[over.box] + over.alpha[..., None] * (over.pixels - frame[over.box])
        out[over.box] = np.rint(mixed).clip(0, 255).astype(np.uint8)
    return out, mask


def layer(
    frame: np.ndarray,
    crop: np.ndarray,
    matrix: np.ndarray,
    *,
    resolution: int,
    weight: float = 1.0,
    look: Look = Look(),
) -> Layer | None:
    """What `paste` blends into a frame, for those who blend it themselves; None where nothing is changed."""
    to_crop = crop_matrix(matrix, resolution)
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:, :2]))))  # pixels of the crop for one of the frame
    box = _repaint_box(to_crop, resolution, max(0.0, look.grow) * scale, frame.shape[1], frame.shape[0])
    area = frame[box]
    if weight <= 0 or not area.size:
        return None
    if look.match:
        crop = match_color(crop, frame, to_crop)
    local = to_crop.copy()
    local[:, 2] += to_crop[:, :2] @ (box[1].start, box[0].start)
    soft = feather(resolution, look.grow * scale, look.feather * scale)
    alpha = _to_frame(soft, local, area).clip(0, 1) * np.float32(weight)  # interpolation rounds
    return Layer(box, _to_frame(crop, local, area).astype(np.float32), alpha)


@lru_cache(maxsize=8)
def first_row_read(resolution: int) -> int:
    """The first row of a crop that `paste` looks at: what is above need not be painted."""
    repainted = np.flatnonzero((mouth_mask(resolution) == 0).any(1))
    return max(0, int(repainted[0] - READ_ABOVE * resolution))


@lru_cache(maxsize=8)
def feather(resolution: int, grow: float = 0.0, width: float = 0.0) -> np.ndarray:
    """How much of the generated crop is mixed in: (R, R) float32, 0 on all that is kept, rising smoothly inside. grow,
    width: as in Look, in pixels of the crop."""
    inside = (_depth(resolution, grow) - 1).clip(0) / (width or FEATHER * resolution)
    alpha = inside.clip(0, 1)
    return alpha * alpha * (3 - 2 * alpha)


def _depth(resolution: int, grow: float = 0.0) -> np.ndarray:
    """Distance in pixels of each repainted pixel from the nearest kept one; the crop's border counts as kept."""
    repaint = np.pad(1 - mouth_mask(resolution), 1).astype(np.uint8)
    if grow > 0:
        beyond = cv2.distanceTransform(1 - repaint, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        repaint = (beyond <= grow).astype(np.uint8)
        repaint[[0, -1]] = repaint[:, [0, -1]] = 0
    depth = cv2.distanceTransform(repaint, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return depth + grow if grow < 0 else depth


def match_color(crop: np.ndarray, frame: np.ndarray, to_crop: np.ndarray) -> np.ndarray:
    """The crop without its slow color difference from the frame, as measured on a ring inside the mask's edge. There
    generated and original show the same skin, so what differs smoothly is the network's and the VAE's doing. to_crop:
    (2, 3) frame -> crop. Returns float32 (R, R, 3), not clipped."""
    side = len(crop)
    original = resample(frame, rescaled(to_crop, MATCH_GRID / side, MATCH_GRID / side), MATCH_GRID)
    generated = cv2.resize(crop, (MATCH_GRID, MATCH_GRID), interpolation=cv2.INTER_AREA)
    difference = (original.astype(np.float32) - generated).clip(-MATCH_LIMIT, MATCH_LIMIT)
    ring = _ring()
    sigma = MATCH_REACH * MATCH_GRID
    carried = cv2.GaussianBlur(difference * ring[..., None], (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    weight = cv2.GaussianBlur(ring, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) + 1e-6
    offset = cv2.resize(carried / weight[..., None], (side, side), interpolation=cv2.INTER_LINEAR)
    return crop + offset


@lru_cache
def _ring() -> np.ndarray:
    depth = _depth(256)
    ring = ((depth > 0) & (depth < MATCH_RING * 256)).astype(np.float32)
    return cv2.resize(ring, (MATCH_GRID, MATCH_GRID), interpolation=cv2.INTER_AREA)


def _repaint_box(to_crop: np.ndarray, resolution: int, grow: float, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of the frame that the repainted part of the crop, grown by pixels of it, can reach."""
    rows, columns = np.nonzero(mouth_mask(resolution) == 0)
    x0, x1, y0, y1 = columns.min() - grow, columns.max() + grow, rows.min() - grow, rows.max() + grow
    corners = np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], np.float64)
    reached = (corners - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T
    left, top = np.floor(reached.min(0)).astype(int) - 1
    right, bottom = np.ceil(reached.max(0)).astype(int) + 2
    return slice(*np.clip((top, bottom), 0, height)), slice(*np.clip((left, right), 0, width))


def _to_frame(crop: np.ndarray, to_crop: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Warp a crop into an area of the frame; a crop finer than the frame is averaged down first."""
    x, y = (max(1.0, float(np.linalg.norm(row))) for row in to_crop[:, :2])
    size = max(1, round(crop.shape[1] / x)), max(1, round(crop.shape[0] / y))
    if size != crop.shape[1::-1]:
        to_crop = rescaled(to_crop, size[0] / crop.shape[1], size[1] / crop.shape[0])
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    kernel = cv2.INTER_CUBIC if crop.ndim == 3 else cv2.INTER_LINEAR  # cubic would overshoot the mask's 0 and 1
    flags = kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(crop, to_crop, area.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _paste_reference(
    frame: np.ndarray, crop: np.ndarray, matrix: np.ndarray, resolution: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """The public implementation's seam: the warped face box, eroded twice and blurred over the full frame."""
    from torch import from_numpy
    from torch.nn.functional import interpolate

    size, (width, height) = frame.shape[1::-1], face_size(resolution)
    picture = from_numpy(crop.astype(np.float32).transpose(2, 0, 1)[None])
    resized = interpolate(picture, (height, width), mode="bicubic", antialias=True, align_corners=False)
    face = resized[0].permute(1, 2, 0).numpy()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    box = cv2.warpAffine(np.ones(face.shape[:2], np.float32), matrix, size, flags=flags)
    box = cv2.erode(box, np.ones((2, 2), np.uint8))
    edge = int(float(box.sum()) ** 0.5) // 20
    soft = cv2.erode(box, np.ones((max(1, 2 * edge),) * 2, np.uint8))
    soft = cv2.GaussianBlur(soft, (2 * edge + 1,) * 2, 0) * np.float32(weight)
    placed = cv2.warpAffine(face, matrix, size, flags=flags).clip(0, 255) * box[..., None]
    mixed = soft[..., None] * placed + (1 - soft[..., None]) * frame
    return mixed.clip(0, 255).astype(np.uint8), soft

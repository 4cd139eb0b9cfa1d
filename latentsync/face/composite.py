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
MATCH_NEAR = 0.04
"""As MATCH_REACH, for what the first pass leaves: along the edge, too, the difference varies."""
MATCH_GRID = 64
READ_ABOVE = 8 / 256
"""How far above the mask `paste` reads, as a share of the crop: a cell of MATCH_GRID, and what the kernels that shrink
a crop reach, for faces down to some 60 pixels of the frame. Smaller ones see a little of the row repeated upwards."""
BESIDE_FACE, BELOW_CHIN = 0.015, 0.06
"""How far beyond the outline by landmarks is painted, as shares of the crop: beside a face lie hair, earrings and
background, while below it a chin needs room that says another word than the source's."""
MOUTH_REACH = (0.65, 0.35, 0.6)
"""Half width of the mouth's area, its height above and below the lips' center, in widths of the mouth. There no texture
of the source is taken over: its lips are elsewhere."""
SHARPEN, SHARPEN_SIGMA = 0.6, 0.5
"""Strength and width (pixels of the crop) of the sharpening of a crop that is enlarged: what came nearest, in PSNR and
SSIM, to portraits that were cut out and put back at 1.5 to 5 times the crop's size."""
SHARPEN_FROM, SHARPEN_FULL = 1.25, 1.5  # pixels of the frame for one of the crop
TEXTURE_SIGMA = 1.5  # pixels of the frame: what is finer is texture and grain
TEXTURE_CLIP = 3.0  # stronger than so many times the usual detail is an edge of the old picture, not texture


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
    points68: np.ndarray | None = None,
    covered: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Put the repainted part of a crop back into its frame.

    frame: (H, W, 3) uint8. crop: (R, R, 3) RGB, uint8 or float in 0..255. matrix: (2, 3) from align_matrices.
    weight: 0..1, the strength of the whole (fades). match: take away the slow color difference along the mask's edge.
    points68: (68, 2) landmarks in pixels of the frame; with them only the face itself is repainted, and its skin gets
    the source's texture. covered: (M, M) uint8 in the crop, 255 = something lies over the face and stays.
    Returns the new frame and the mask (H, W) float32 of what was mixed in; where it is 0 the frame is bit-identical.
    reference: the public implementation's blend of the whole face box instead (no color match).
    """
    if reference:
        return _paste_reference(frame, crop, matrix, resolution, weight)
    mask = np.zeros(frame.shape[:2], np.float32)
    out = frame.copy()
    over = layer(
        frame, crop, matrix, resolution=resolution, weight=weight, look=Look(match), points68=points68, covered=covered
    )
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
    points68: np.ndarray | None = None,
    covered: np.ndarray | None = None,
) -> Layer | None:
    """What `paste` blends into a frame, for those who blend it themselves; None where nothing is changed."""
    to_crop = crop_matrix(matrix, resolution)
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:, :2]))))  # pixels of the crop for one of the frame
    box = _repaint_box(to_crop, resolution, max(0.0, look.grow) * scale, frame.shape[1], frame.shape[0])
    area = frame[box]
    if weight <= 0 or not area.size:
        return None
    soft = feather(resolution, look.grow * scale, look.feather * scale)
    seen = None if points68 is None else points68 @ to_crop[:, :2].T + to_crop[:, 2]
    if seen is not None:
        soft = soft * face_outline(seen, resolution)
    if covered is not None:
        mask = cv2.resize(covered, (resolution, resolution), interpolation=cv2.INTER_LINEAR)
        soft = soft * (1 - mask.astype(np.float32) / 255)
    if look.match:
        crop = match_color(crop, frame, to_crop, soft)
    crop = _sharpened(crop, 1 / scale)
    local = to_crop.copy()
    local[:, 2] += to_crop[:, :2] @ (box[1].start, box[0].start)
    alpha = _to_frame(soft, local, area).clip(0, 1)  # interpolation rounds
    pixels = _to_frame(crop, local, area).astype(np.float32)
    if look.match and seen is not None:
        skin = alpha * (1 - _to_frame(_mouth_area(seen, resolution), local, area))
        pixels = match_texture(pixels, area, skin)
    return Layer(box, pixels, alpha * np.float32(weight))


def _sharpened(crop: np.ndarray, enlarged: float) -> np.ndarray:
    """Against what a crop loses where it is made smaller and larger again. enlarged: pixels of the frame for one."""
    strength = SHARPEN * min(1.0, (enlarged - SHARPEN_FROM) / (SHARPEN_FULL - SHARPEN_FROM))
    if strength <= 0:
        return crop
    crop = crop.astype(np.float32)
    return crop + strength * (crop - cv2.GaussianBlur(crop, (0, 0), SHARPEN_SIGMA))


def face_outline(points68: np.ndarray, resolution: int) -> np.ndarray:
    """(R, R) float32: 1 in the face, falling to 0 a little beyond its outline. points68: (68, 2) pixels of the crop.

    The network's mask reaches beyond narrow faces; what is painted there (hair, collar, background) is made up.
    """
    jaw, center = points68[:17].astype(np.float64), points68[27:36].mean(0)
    away = jaw - center
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-6
    jaw += away * (BESIDE_FACE + (BELOW_CHIN - BESIDE_FACE) * away[:, 1:].clip(0) ** 2) * resolution
    # upwards as far as the crop goes: the mask ends below the eyes
    outline = np.concatenate([jaw, [(jaw[16, 0], -resolution), (jaw[0, 0], -resolution)]])
    inside = np.zeros((resolution, resolution), np.float32)
    cv2.fillPoly(inside, [(outline * 16).round().astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    edge = FEATHER * resolution
    alpha = (2 * cv2.GaussianBlur(inside, (0, 0), edge / 2, borderType=cv2.BORDER_REPLICATE) - 1).clip(0, 1)
    return alpha * alpha * (3 - 2 * alpha)


def _mouth_area(points68: np.ndarray, resolution: int) -> np.ndarray:
    """(R, R) float32: 1 where lips are or may come to lie."""
    left, right = points68[48], points68[54]
    x, y = points68[48:60].mean(0)
    wide, above, below = np.array(MOUTH_REACH) * max(1.0, float(np.linalg.norm(right - left)))
    rows, columns = np.mgrid[:resolution, :resolution].astype(np.float32)
    high = np.where(rows < y, above, below)
    far = ((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2
    return (1 - 3 * (far - 1)).clip(0, 1).astype(np.float32)


def match_texture(pixels: np.ndarray, area: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Fine detail of the skin made as strong as the source's, by adding the source's own: pores, stubble, grain.

    pixels: what is pasted, area: what it is pasted on, both (h, w, 3) in 0..255. skin: (h, w) float32, how much of each
    pixel is repainted skin.
    """
    measured = skin > 0.5
    if np.count_nonzero(measured) < 64:
        return pixels
    made, own = (_detail(picture) for picture in (pixels, area))
    strength = lambda detail: float(np.median(np.abs(detail[measured].mean(-1)))) + 1e-3  # noqa: E731
    wanted, there = strength(own), strength(made)
    added = np.sqrt(max(0.0, wanted**2 - there**2)) / wanted
    limit = TEXTURE_CLIP * 1.5 * wanted  # of a normal distribution the median is 0.67 of the standard deviation
    change = own.clip(-limit, limit) * added + made * (min(1.0, wanted / there) - 1)
    return pixels + change * skin[..., None]


def _detail(picture: np.ndarray) -> np.ndarray:
    picture = picture.astype(np.float32)
    return picture - cv2.GaussianBlur(picture, (0, 0), TEXTURE_SIGMA)


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


def match_color(crop: np.ndarray, frame: np.ndarray, to_crop: np.ndarray, soft: np.ndarray | None = None) -> np.ndarray:
    """The crop without its slow color difference from the frame, as measured on a ring inside the mask's edge. There
    generated and original show the same skin, so what differs smoothly is the network's and the VAE's doing. to_crop:
    (2, 3) frame -> crop. soft: (R, R), the mask with its soft edge; the network's where None. Returns float32
    (R, R, 3), not clipped."""
    side = len(crop)
    original = resample(frame, rescaled(to_crop, MATCH_GRID / side, MATCH_GRID / side), MATCH_GRID)
    generated = cv2.resize(crop, (MATCH_GRID, MATCH_GRID), interpolation=cv2.INTER_AREA)
    difference = (original.astype(np.float32) - generated).clip(-MATCH_LIMIT, MATCH_LIMIT)
    edge = ((soft > 0) & (soft < 0.97)).astype(np.float32) if soft is not None else None
    ring = _ring() if edge is None else cv2.resize(edge, (MATCH_GRID, MATCH_GRID), interpolation=cv2.INTER_AREA)
    offset = np.zeros_like(difference)
    for reach in (MATCH_REACH, MATCH_NEAR):
        left = (difference - offset) * ring[..., None]
        carried = cv2.GaussianBlur(left, (0, 0), reach * MATCH_GRID, borderType=cv2.BORDER_CONSTANT)
        weight = cv2.GaussianBlur(ring, (0, 0), reach * MATCH_GRID, borderType=cv2.BORDER_CONSTANT)
        least = 1e-6 if reach == MATCH_REACH else 0.05  # near the ring only
        offset += carried / (weight[..., None] + least)
    return crop + cv2.resize(offset, (side, side), interpolation=cv2.INTER_LINEAR)


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

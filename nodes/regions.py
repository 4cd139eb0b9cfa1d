"""Boxes, masks and landmarks of other packs, and a FACE_TRACK as these. No ComfyUI in here.

BOUNDING_BOX (ComfyUI): {x, y, width, height}, a list of these, or one list for each frame. BBOX (KJNodes, mtb and
others): (x, y, width, height), a list of these, or one list for each frame. SEGS (Impact Pack): (shape, segments) with
a box x0, y0, x1, y1 in each segment. FACE_LANDMARKS (ComfyUI): {"frames": faces of each frame, "image_size": (H, W)}.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..latentsync.errors import UserError
from ..latentsync.face.aligned import AlignedFace
from ..latentsync.face.choose import describe
from ..latentsync.face.composite import Look
from ..latentsync.face.detect import Box, Face, face_of_mesh, overlap
from ..latentsync.face.track import FaceTrack, Tracks

COVERED = 0.3
"""Share of a face's box that a region must cover, on average over the frames in which the face is seen."""
FOUND = 0.1
"""Least overlap of a face with the place where it is looked for."""


class GivenFaces:
    """Faces that another node found, in place of the engine's FaceFinder.

    Frames must be read through `watched`, which keeps count of them.
    """

    def __init__(self, landmarks: Any, count: int) -> None:
        frames = landmarks.get("frames") if isinstance(landmarks, Mapping) else None
        if not isinstance(frames, Sequence):
            raise UserError(
                "These FACE_LANDMARKS hold no faces frame by frame; connect Detect Face Landmarks (MediaPipe)."
            )
        if len(frames) != count:
            raise UserError(
                f"There are FACE_LANDMARKS for {len(frames)} frames and {count} images; connect both from the same"
                " images."
            )
        self._frames = [
            [face_of_mesh(np.asarray(face["landmarks_xy"], np.float64) - 0.5) for face in one] for one in frames
        ]
        self._now = -1

    def watched(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for self._now, frame in enumerate(frames):
            yield frame

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]:
        taken = list(known)
        found = [face for face in self._frames[self._now] if not any(overlap(face.box, box) > FOUND for box in taken)]
        return sorted(found, key=lambda face: -face.height)

    def refine(self, frame: np.ndarray, box: Box, tilt: float = 0.0) -> Face | None:
        scored = [replace(face, score=overlap(face.box, box)) for face in self._frames[self._now]]
        return max((face for face in scored if face.score > FOUND), key=lambda face: face.score, default=None)


def within(tracks: Tracks, region: Any) -> Tracks:
    """The faces that lie in a MASK, BBOX, BOUNDING_BOX or SEGS; UserError, listing the faces, where none does."""
    # a tensor of rows of four is boxes
    masks = region if isinstance(region, Tensor) and region.ndim in (2, 3) and region.shape[-1] != 4 else None
    boxes = None if masks is not None else _boxes(region)
    covered = [_covered(track, tracks.frames, masks, boxes) for track in tracks.faces]
    kept = tuple(track for track, share in zip(tracks.faces, covered, strict=True) if share >= COVERED)
    if not kept:
        raise UserError(f"No face is in the connected region; the faces found are {describe(tracks)}.")
    return replace(tracks, faces=kept)


def _covered(track: FaceTrack, frames: int, masks: Tensor | None, boxes: list[list[Box]] | None) -> float:
    shares = []
    for i in np.flatnonzero(track.present):
        face = _face_box(track.landmarks[i])
        if masks is not None:
            mask = masks if masks.ndim == 2 else masks[_frame_of(int(i), len(masks), frames, "MASK")]
            shares.append(_mean_in(mask, face, track.size))
        elif boxes is not None:
            here = boxes[_frame_of(int(i), len(boxes), frames, "boxes")]
            shares.append(max((_shared(face, box) for box in here), default=0.0))
    return float(np.mean(shares)) if shares else 0.0


def _frame_of(i: int, given: int, frames: int, name: str) -> int:
    if given not in (1, frames):
        raise UserError(f"The region has {name} for {given} frames and there are {frames}; give one, or one for each.")
    return 0 if given == 1 else i


def _face_box(landmarks: np.ndarray) -> Box:
    (x0, y0), (x1, y1) = landmarks.min(0), landmarks.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _shared(face: Box, box: Box) -> float:
    """The part of a face that a box covers."""
    width = min(face[2], box[2]) - max(face[0], box[0])
    height = min(face[3], box[3]) - max(face[1], box[1])
    return max(0.0, width) * max(0.0, height) / ((face[2] - face[0]) * (face[3] - face[1]))


def _mean_in(mask: Tensor, face: Box, size: tuple[int, int]) -> float:
    across, down = mask.shape[1] / size[0], mask.shape[0] / size[1]
    x0, x1 = (int(np.clip(round(x * across), 0, mask.shape[1])) for x in (face[0], face[2]))
    y0, y1 = (int(np.clip(round(y * down), 0, mask.shape[0])) for y in (face[1], face[3]))
    part = mask[y0:y1, x0:x1]
    return float(part.float().mean()) if part.numel() else 0.0


def _boxes(region: Any) -> list[list[Box]]:
    """One list of boxes for each frame, or one for all."""
    if _is_segs(region):
        return [[_corners(seg.bbox) for seg in region[1]]]
    if isinstance(region, Tensor | np.ndarray):
        region = np.asarray(region).tolist()
    if _is_box(region):
        return [[_sized(region)]]
    if isinstance(region, Sequence) and not isinstance(region, str):
        if all(map(_is_box, region)):
            return [[_sized(box) for box in region]]
        if all(isinstance(one, Sequence) and all(map(_is_box, one)) for one in region):
            return [[_sized(box) for box in one] for one in region]
    raise UserError(
        f"The region is a {type(region).__name__} that cannot be read; connect a MASK, BOUNDING_BOX, BBOX or SEGS."
    )


def _is_segs(region: Any) -> bool:
    two = isinstance(region, tuple) and len(region) == 2 and isinstance(region[1], Sequence)
    return two and len(region[1]) > 0 and all(hasattr(seg, "bbox") for seg in region[1])


def _is_box(box: Any) -> bool:
    if isinstance(box, Mapping):
        return {"x", "y", "width", "height"} <= box.keys()
    return isinstance(box, Sequence) and len(box) == 4 and all(isinstance(v, int | float | np.number) for v in box)


def _sized(box: Any) -> Box:
    x, y, width, height = (box[k] for k in ("x", "y", "width", "height")) if isinstance(box, Mapping) else box
    return float(x), float(y), float(x + width), float(y + height)


def _corners(box: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, x1, y1


def as_boxes(clip: AlignedFace) -> list[tuple[float, float, float, float] | None]:
    """x, y, width, height of the face in every frame, None where it is not seen; in pixels, inside the picture."""
    out: list[tuple[float, float, float, float] | None] = []
    width, height = clip.size
    for i, source in enumerate(clip.source_indices):
        x0, y0, x1, y1 = _face_box(clip.track.landmarks[source])
        x0, x1, y0, y1 = *np.clip((x0, x1), 0, width), *np.clip((y0, y1), 0, height)
        seen = clip.segment_index[i] >= 0
        out.append((float(x0), float(y0), float(x1 - x0), float(y1 - y0)) if seen else None)
    return out


def held(boxes: list[tuple[float, float, float, float] | None]) -> list[tuple[float, float, float, float]]:
    """One box for each frame: the last known one where there is none, the first known one before that."""
    known = next((box for box in boxes if box is not None), (0.0, 0.0, 0.0, 0.0))
    out = []
    for box in boxes:
        known = box or known
        out.append(known)
    return out


def as_masks(clip: AlignedFace, part: str) -> Tensor:
    """(F, H, W) float32, 0 where there is no face. part: "face", its outline from the brows down, or "mouth", what
    Composite repaints."""
    width, height = clip.size
    masks = torch.zeros(clip.frames, height, width)
    nothing = np.zeros((clip.resolution, clip.resolution, 3), np.uint8)
    empty = np.zeros((height, width, 3), np.uint8)
    for i, source in enumerate(clip.source_indices):
        if clip.segment_index[i] < 0:
            continue
        if part == "mouth":
            over = clip.layer(empty, nothing, i, Look(match=False))
            if over is not None:
                masks[i][over.box] = torch.from_numpy(over.alpha)
        else:
            outline = cv2.convexHull(clip.track.landmarks[source].round().astype(np.int32))
            masks[i] = torch.from_numpy(cv2.fillConvexPoly(np.zeros((height, width), np.float32), outline, 1.0))
    return masks

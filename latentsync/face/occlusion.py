"""What lies over a face: hands, microphones, cups. It is found in the aligned lower face and kept on top.

A small network marks the covered pixels of every frame by itself, so a clip that is covered from end to end needs no
clean view. Time then decides: what is seen in one or two frames alone is no cover, and a mask neither flickers nor
jumps in.
"""

import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .align import align_matrices, crop_matrix, resample
from .detect import three_points
from .mask import mouth_mask

SIDE, TOP = 64, 16
"""The network sees the rows from TOP on of an aligned crop of SIDE pixels: from below the brows to the chin."""
BATCH = 16
ASSET = Path(__file__).parents[1] / "assets" / "covers.safetensors"

SEEN, SURE = 0.01, 0.03
"""Shares of the face's repainted pixels, marked as covered: a cover lasts while SEEN is reached and is one if SURE is.
On 6259 frames of clean clips no run reached 0.02; a pen before the lips covers 0.05."""
LASTS, ALONE = 4, 0.1
"""Frames with SURE that make a cover. Of fewer pictures (a still) each needs ALONE: 2 of 43 stills, bearded or turned
away, come to 0.03 and 0.08 without a cover."""
PAUSE = 8
"""Frames after which a cover that is not seen is gone."""
RAMP = 3
"""Frames over which a mask comes in before a cover and goes out after it."""
REACH = 2
"""A mask is the mean over this many frames before and after."""
LOW, HIGH = 0.15, 0.45
"""Likelihoods that count as free and as covered; between them a mask is soft. Low, as a kept pixel does less harm than
one painted over a hand."""
LEVELS = 15
"""Steps in which likelihoods are kept, so that they pack well."""
HIDDEN, STILL_HIDDEN = 0.6, 0.45
"""Shares of the lips' place covered from which, and down to which, frames are passed through."""
LIPS_AT, LIPS_SIZE = (0.5, 0.65), (0.18, 0.1)
"""Center and half axes of the lips' place in the aligned crop."""


class CoverNet(nn.Module):
    """Aligned lower faces (N, 3, 48, 64) RGB in [0, 1] to logits (N, 48, 64): above 0 something lies over the face."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        a, b, c = widths
        self.fine = _down(3, a)
        self.middle = nn.Sequential(_down(a, b), _Block(b))
        self.coarse = nn.Sequential(_down(b, c), _Block(c), _Block(c))
        self.whole = nn.Linear(c, c)
        self.rise, self.mixed, self.last = nn.Conv2d(c, b, 1), _Block(b), nn.Conv2d(b, a, 1)
        layers = (
            nn.Conv2d(a, a, 3, padding=1, bias=False),
            nn.BatchNorm2d(a),
            nn.ReLU(),
            nn.Conv2d(a, 4, 3, padding=1),
        )
        self.out = nn.Sequential(*layers, nn.PixelShuffle(2))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels - pixels.mean((1, 2, 3), keepdim=True)  # neither the light's strength nor the contrast says anything
        fine = self.fine(x / (x.std((1, 2, 3), keepdim=True) + 0.04))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        coarse = coarse + self.whole(coarse.mean((2, 3)))[..., None, None]
        middle = self.mixed(middle + F.interpolate(self.rise(coarse), scale_factor=2.0))
        return self.out(fine + F.interpolate(self.last(middle), scale_factor=2.0))[:, 0]


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first = (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        second = (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.layers = nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _down(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


@lru_cache
def cover_net() -> CoverNet:
    """The network that comes with the package, trained on faces whose licenses allow it (portraits and clips) with
    covers drawn over them: fingers, fists, cups, microphones, pens, cloth, shapes of any texture."""
    with torch.device("meta"):  # the global random generator is left alone
        net = CoverNet()
    tensors = {key: value.float() for key, value in load_file(ASSET).items()}
    net.load_state_dict(tensors, strict=False, assign=True)
    return net.eval()


class Covers:
    """What lies over one followed face: watch() every frame of it, then finish()."""

    def __init__(self) -> None:
        self._net = cover_net()
        self._waiting: list[tuple[int, np.ndarray, np.ndarray]] = []  # frame, picture, where it counts
        self._points: dict[int, np.ndarray] = {}
        self._likely: dict[int, bytes] = {}
        self._share: dict[int, float] = {}
        self._watched = 0

    def watch(self, i: int, frame: np.ndarray, points68: np.ndarray) -> None:
        """Look at frame i, (H, W, 3) uint8 RGB, with its face at points68, (68, 2) pixels. Frames come in order."""
        points = three_points(points68)
        to_crop = crop_matrix(align_matrices(points[None], SIDE)[0], SIDE)
        self._waiting.append((i, _thumbnail(frame, to_crop)[TOP:], _own_face(points68, to_crop)))
        self._points[i] = points
        self._watched += 1
        if len(self._waiting) == BATCH:
            self._look()

    def joined(self, other: "Covers") -> "Covers":
        """Of two followings of one face, never in the same frame."""
        both = Covers()
        for one in (self, other):
            if one._waiting:
                one._look()
            both._points |= one._points
            both._likely |= one._likely
            both._share |= one._share
            both._watched += one._watched
        return both

    def finish(self, points: np.ndarray | None = None) -> "CoverMasks":
        """The masks of all frames with a cover. points: (F, 3, 2), FaceTrack.points: the masks then lie in the crops of
        these steadied points, not in those of the points as measured."""
        if self._waiting:
            self._look()
        enough = self._watched >= LASTS
        runs = find_runs(self._share) if enough else find_runs(self._share, lasts=1, sure=ALONE)
        return CoverMasks(runs, self._likely, self._points, points)

    @torch.inference_mode()
    def _look(self) -> None:
        pixels = torch.from_numpy(np.stack([thumb for _, thumb, _ in self._waiting])).permute(0, 3, 1, 2).float() / 255
        likely = self._net(pixels).sigmoid().numpy()
        for (i, _, counts), mask in zip(self._waiting, likely, strict=True):
            share = float((mask[counts] > 0.5).mean()) if counts.any() else 0.0
            if share >= SEEN:  # frames without a suspicion cost no memory
                self._share[i] = share
                self._likely[i] = zlib.compress(np.rint(mask * LEVELS).astype(np.uint8).tobytes(), 1)
            else:
                del self._points[i]
        self._waiting.clear()


class CoverMasks(Mapping[int, np.ndarray]):
    """Frame number -> (SIDE, SIDE) uint8 in the aligned crop, 255 where something lies over the face. There are only
    the frames with a cover, and a few before and after in which it comes in and goes out; each is made when asked for.

    hidden: frames that are best passed through as they are, as most of the mouth is covered; there all is 255.
    """

    def __init__(
        self,
        runs: Sequence[tuple[int, int]],
        likely: Mapping[int, bytes],
        points: Mapping[int, np.ndarray],
        steady: np.ndarray | None = None,
    ) -> None:
        self._likely, self._points, self._steady = likely, points, steady
        stop = sys.maxsize if steady is None else len(steady)
        self._run = {i: run for run in runs for i in range(max(0, run[0] - RAMP), min(stop, run[1] + RAMP))}
        over_lips = {i: float(self._mask(i)[_lips()].mean()) for run in runs for i in range(*run)}
        self._hidden_runs = _hidden_runs(over_lips)
        self.hidden = frozenset(i for run in self._hidden_runs for i in range(*run))

    def __len__(self) -> int:
        return len(self._run)

    def __iter__(self) -> Iterator[int]:
        return iter(self._run)

    def __getitem__(self, i: int) -> np.ndarray:
        mask = self._mask(i) * _ramp(i, self._run[i])
        for run in self._hidden_runs:
            mask = np.maximum(mask, _ramp(i, run))
        return np.rint(np.pad(mask, ((TOP, 0), (0, 0))) * 255).astype(np.uint8)

    def _mask(self, i: int) -> np.ndarray:
        """(SIDE - TOP, SIDE) float32: how much of each pixel is covered, steadied over time."""
        start, stop = self._run[i]
        inside = min(max(i, start), stop - 1)
        near = [j for j in range(inside - REACH, inside + REACH + 1) if j in self._likely]
        if not near:  # in a pause: the cover as it was last seen
            near = [max(j for j in range(start, inside) if j in self._likely)]
        likely = np.mean([self._placed(j) for j in near], 0)
        return cv2.blur(((likely - LOW) / (HIGH - LOW)).clip(0, 1), (3, 3))

    def _placed(self, i: int) -> np.ndarray:
        """What the network said of frame i, moved from the crop of the points as measured to that of the steadied."""
        packed = np.frombuffer(zlib.decompress(self._likely[i]), np.uint8).reshape(SIDE - TOP, SIDE)
        likely = packed.astype(np.float32) / LEVELS
        if self._steady is None:
            return likely
        measured, steady = (
            np.vstack([crop_matrix(matrix, SIDE), (0, 0, 1)])
            for matrix in align_matrices(np.stack([self._points[i], self._steady[i]]), SIDE)
        )
        down = np.array([[1, 0, 0], [0, 1, TOP], [0, 0, 1.0]])
        move = np.linalg.inv(down) @ steady @ np.linalg.inv(measured) @ down
        return cv2.warpAffine(likely, move[:2], likely.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def find_runs(share: Mapping[int, float], lasts: int = LASTS, sure: float = SURE) -> list[tuple[int, int]]:
    """Half-open runs of frames with a cover. share: of the repainted pixels that is covered, by frame, where SEEN."""
    runs: list[list[int]] = []
    for i in sorted(share):
        if runs and i - runs[-1][-1] <= PAUSE:
            runs[-1].append(i)
        else:
            runs.append([i])
    return [(run[0], run[-1] + 1) for run in runs if sum(share[i] >= sure for i in run) >= lasts]


def _hidden_runs(over_lips: Mapping[int, float]) -> list[tuple[int, int]]:
    """Half-open runs of frames, begun at HIDDEN and ended below STILL_HIDDEN."""
    runs: list[list[int]] = []
    for i in sorted(over_lips):
        goes_on = bool(runs) and runs[-1][1] == i and over_lips[i] >= STILL_HIDDEN
        if goes_on:
            runs[-1][1] = i + 1
        elif over_lips[i] >= HIDDEN:
            runs.append([i, i + 1])
    return [(start, stop) for start, stop in runs]


def _ramp(i: int, run: tuple[int, int]) -> float:
    """1 in a run, falling to 0 over RAMP frames before and after it."""
    outside = max(run[0] - i, i - run[1] + 1, 0)
    return max(0.0, 1 - outside / (RAMP + 1))


def _thumbnail(frame: np.ndarray, to_crop: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: the aligned crop. A large face is halved (or more) first, which is faster."""
    less = int(0.5 / np.linalg.norm(to_crop[:, :2], axis=1).max())
    if less < 2:
        return resample(frame, to_crop, SIDE)
    corners = np.array([(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)])
    reached = (corners - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T
    left, top = np.maximum(np.floor(reached.min(0)).astype(int) - less, 0).tolist()
    width, height = (np.ceil(reached.max(0)).astype(int) + less - (left, top)).tolist()
    part = frame[top : top + height, left : left + width]
    if min(part.shape[:2]) < less:
        return resample(frame, to_crop, SIDE)
    size = (part.shape[1] // less, part.shape[0] // less)
    part = part[: size[1] * less, : size[0] * less]
    moved = to_crop.copy()
    moved[:, 2] += to_crop[:, :2] @ (left + (less - 1) / 2, top + (less - 1) / 2)
    moved[:, :2] *= less
    return resample(cv2.resize(part, size, interpolation=cv2.INTER_AREA), moved, SIDE)


def _own_face(points68: np.ndarray, to_crop: np.ndarray) -> np.ndarray:
    """(SIDE - TOP, SIDE) bool: what is repainted and lies within the landmarks. A collar or a wall beside the face may
    look like a cover, and does no harm."""
    outline = cv2.convexHull((points68 @ to_crop[:, :2].T + to_crop[:, 2]).astype(np.float32))
    inside = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(inside, np.rint(outline).astype(np.int32), 1)
    return (inside[TOP:] > 0) & _repainted()


@lru_cache
def _repainted() -> np.ndarray:
    return mouth_mask(SIDE)[TOP:] == 0


@lru_cache
def _lips() -> np.ndarray:
    """Where the lips are in nearly every aligned crop, open or closed."""
    x, y = np.meshgrid(np.arange(SIDE), np.arange(TOP, SIDE))
    return ((x + 0.5 - LIPS_AT[0] * SIDE) / LIPS_SIZE[0]) ** 2 + (
        (y + 0.5 - LIPS_AT[1] * SIDE) / LIPS_SIZE[1]
    ) ** 2 < SIDE**2

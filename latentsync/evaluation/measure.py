"""Everything that can be measured of a clip on its own, and of a made clip against the true one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError
from ..face.align import align_matrices, crop_face, crop_matrix
from ..models.syncnet import SyncNet
from .clips import Followed, sync_clip
from .identity import Identity, face_112, thumbnail_likeness
from .image_metrics import Frechet, flicker, gradient_similarity, lips_region, mouth_region, psnr, sharpness, ssim_map
from .landmark_sync import Score, score_track
from .mouth_motion import compare_motion
from .networks import Lpips
from .syncnet_sync import CountCallback, SyncScore, Vae

SIDE = 256
"""Side of the aligned crops that pictures are compared in."""


@dataclass(frozen=True)
class Metric:
    """title: as it is shown. better: "higher", "lower" or "" (only against another clip). needs: a file, by option."""

    title: str
    unit: str
    better: str
    digits: int = 3
    needs: str = ""


METRICS = {
    "lse_c": Metric("LSE-C (SyncNet confidence)", "", "higher", 2, "--syncnet"),
    "lse_d": Metric("LSE-D (SyncNet distance)", "", "lower", 2, "--syncnet"),
    "sync_offset": Metric("offset by SyncNet", "frames", "", 0, "--syncnet"),
    "landmark_confidence": Metric("confidence by landmarks", "", "higher", 2),
    "landmark_offset": Metric("offset by landmarks", "frames", "", 0),
    "opening_correlation": Metric("mouth opening, correlation", "", "higher"),
    "opening_error": Metric("mouth opening, mean error", "of face height", "lower", 4),
    "lip_distance": Metric("lip landmarks (LMD)", "of face height", "lower", 4),
    "psnr_mouth": Metric("PSNR, mouth", "dB", "higher", 2),
    "psnr_face": Metric("PSNR, face", "dB", "higher", 2),
    "ssim_mouth": Metric("SSIM, mouth", "", "higher"),
    "ssim_face": Metric("SSIM, face", "", "higher"),
    "gradient_similarity": Metric("gradient similarity, mouth", "", "higher"),
    "lpips": Metric("LPIPS, face", "", "lower", 4, "--lpips"),
    "identity": Metric("identity similarity", "", "higher", 3, "--identity-network"),
    "thumbnail_likeness": Metric("thumbnail likeness (no identity)", "", "higher"),
    "sharpness": Metric("sharpness at the lips", "", "", 1),
    "sharpness_ratio": Metric("sharpness, made / true", "", "", 3),
    "flicker_skin": Metric("flicker outside the lips", "gray levels", "lower", 2),
    "flicker_lips": Metric("flicker inside the lips", "gray levels", "", 2),
    "flicker_skin_true": Metric("flicker outside, of the truth", "gray levels", "", 2),
    "flicker_lips_true": Metric("flicker inside, of the truth", "gray levels", "", 2),
    "fid": Metric("FID", "", "lower", 2, "--fid-network"),
    "fvd": Metric("FVD", "", "lower", 2, "--fvd-network"),
}


@dataclass(frozen=True)
class Tools:
    """What needs a file; None where the user gave none."""

    syncnet: SyncNet | None = None
    vae: Vae | None = None
    lpips: Lpips | None = None
    identity: Identity | None = None
    fid: Frechet | None = None
    fvd: Frechet | None = None


@dataclass(frozen=True)
class Result:
    """values: metric to number. skipped: metric to why not. curves: metric to (F,) at fps, NaN where not known."""

    name: str
    frames: int
    fps: float
    values: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    sync: SyncScore | None = None
    score: Score | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers for JSON."""
        facts: dict[str, Any] = {
            "name": self.name,
            "frames": self.frames,
            "fps": round(self.fps, 6),
            "values": {k: round(v, 6) if np.isfinite(v) else None for k, v in self.values.items()},
            "skipped": self.skipped,
        }
        return facts | ({"sync": self.sync.as_dict()} if self.sync else {})


def measure(clip: Followed, tools: Tools, *, name: str = "", on_step: CountCallback | None = None) -> Result:
    """One clip without a truth: sync (SyncNet where given, landmarks), sharpness and flicker."""
    values, skipped, sync, score = _sync(clip, tools, on_step)
    looks, matrices = _Looks(), align_matrices(clip.track.points, SIDE)
    points = in_crops(clip.track.landmarks, matrices)
    for i, frame in _present(clip, clip.frames()):
        if frame is None:
            looks.part()
        else:
            looks.add(crop_face(frame, matrices[i], SIDE), points[i])
    values |= looks.values()
    return Result(name or clip.path.name, len(clip.shown), float(clip.fps), values, skipped, {}, sync, score)


def compare(
    made: Followed, true: Followed, tools: Tools, *, name: str = "", on_step: CountCallback | None = None
) -> Result:
    """A made clip against the true one, frame by frame at the slower one's rate, both cropped where the true face is.

    Frames behind the shorter one's end do not count. UserError: another shape of picture, no face in common.
    tools.fid and tools.fvd gather this clip's features; their distance is the caller's to ask for.
    """
    values, skipped, sync, score = _sync(made, tools, on_step)
    rate = min(made.fps, true.fps)
    made, true = made.at(rate), true.at(rate)
    motion = compare_motion(made.track, true.track)
    if motion is None:
        raise UserError(f"{made.path} and {true.path} never show a face in the same frame; are they the same clip?")
    values |= {"opening_error": motion.opening_error, "lip_distance": motion.lip_distance}
    if motion.opening_correlation is None:
        skipped["opening_correlation"] = "one of the two mouths never moves"
    else:
        values["opening_correlation"] = motion.opening_correlation
    curves, looks = _pictures(made, true, tools)
    values |= {key: float(np.nanmean(curve)) for key, curve in curves.items()} | looks
    skipped |= {
        key: f"give {METRICS[key].needs}" for key in ("lpips", "identity", "fid", "fvd") if getattr(tools, key) is None
    }
    curves |= {"lip_distance": motion.per_frame, "opening": motion.openings[0], "opening_true": motion.openings[1]}
    frames = len(motion.per_frame)
    return Result(name or made.path.name, frames, float(rate), values, skipped, curves, sync, score)


def _sync(
    clip: Followed, tools: Tools, on_step: CountCallback | None
) -> tuple[dict[str, float], dict[str, str], SyncScore | None, Score | None]:
    values: dict[str, float] = {}
    skipped: dict[str, str] = {}
    sync = score = None
    by_net, by_landmarks = ("lse_c", "lse_d", "sync_offset"), ("landmark_confidence", "landmark_offset")
    if tools.syncnet is None:
        skipped |= dict.fromkeys(by_net, f"give {METRICS['lse_c'].needs}")
    else:
        try:
            sync = sync_clip(tools.syncnet, clip, clip.speech(), vae=tools.vae, on_step=on_step)
            values |= dict(zip(by_net, (sync.confidence, sync.distance, float(sync.offset)), strict=True))
        except UserError as error:
            skipped |= dict.fromkeys(by_net, str(error))
    try:
        score = score_track(clip.track, clip.speech(), clip.fps)
        values |= dict(zip(by_landmarks, (score.confidence, float(score.offset)), strict=True))
    except UserError as error:
        skipped |= dict.fromkeys(by_landmarks, str(error))
    return values, skipped, sync, score


def in_crops(landmarks: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """(F, 68, 2) in pixels of frames to pixels of the crops that align_matrices(…, SIDE) cuts."""
    crop = np.stack([crop_matrix(m, SIDE) for m in matrices])
    return np.einsum("fij,fkj->fki", crop[..., :2], landmarks.astype(np.float64)) + crop[:, None, :, 2]


def _present(clip: Followed, frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """(frame's number, frame) where there is the face; None before every stretch's first."""
    starts = {start for start, _ in clip.track.segments}
    for i, frame in enumerate(frames):
        if i in starts:
            yield i, None
        if clip.track.present[i]:
            yield i, frame


class _Looks:
    """Sharpness and flicker of aligned crops as they pass."""

    def __init__(self) -> None:
        self.sharp: list[float] = []
        self.skin: list[float] = []
        self.lips: list[float] = []
        self._last: list[tuple[np.ndarray, np.ndarray]] = []
        self._mouth = mouth_region(SIDE)

    def part(self) -> None:
        self._last = []

    def add(self, crop: np.ndarray, points: np.ndarray) -> None:
        lips = lips_region(points, SIDE)
        self.sharp.append(sharpness(crop, lips))
        self._last = [*self._last[-2:], (crop, lips)]
        if len(self._last) == 3:
            (a, _), (b, _), (c, _) = self._last
            inside = np.logical_or.reduce([mask for _, mask in self._last])
            self.skin.append(flicker(a, b, c, self._mouth & ~inside))
            self.lips.append(flicker(a, b, c, inside))

    def values(self, suffix: str = "") -> dict[str, float]:
        named = {"sharpness": self.sharp, "flicker_skin": self.skin, "flicker_lips": self.lips}
        return {key + suffix: float(np.mean(found)) for key, found in named.items() if found}


def _pictures(made: Followed, true: Followed, tools: Tools) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Curves of what is measured frame by frame, and what is measured over frames."""
    scale = _scale(made, true)
    matrices = align_matrices(true.track.points, SIDE)
    own = matrices.copy()  # from pixels of the made frames, by way of the true ones
    own[..., 2] += own[..., :2] @ (0.5 / scale - 0.5)
    own[..., :2] = own[..., :2] / scale
    frames = min(len(made.shown), len(true.shown))
    points = in_crops(made.track.landmarks[:frames], own[:frames]), in_crops(true.track.landmarks, matrices)
    looks = _Looks(), _Looks()
    curves: dict[str, np.ndarray] = {}
    for i, pair in _present(true, zip(made.frames(), true.frames(), strict=False)):
        if pair is None:
            _part(looks, tools)
            continue
        crops = crop_face(pair[0], own[i], SIDE), crop_face(pair[1], matrices[i], SIDE)
        for look, crop, where in zip(looks, crops, points, strict=True):
            look.add(crop, where[i])
        for key, value in _frame(crops, pair, (made, true), i, tools).items():
            curves.setdefault(key, np.full(frames, np.nan))[i] = value
        for gather in filter(None, (tools.fid, tools.fvd)):
            gather.add(*crops)
    _part(looks, tools)
    return curves, _against(*looks)


def _part(looks: tuple[_Looks, _Looks], tools: Tools) -> None:
    """Nothing is measured across two shots."""
    for look in looks:
        look.part()
    for gather in filter(None, (tools.fid, tools.fvd)):
        gather.finish()


def _scale(made: Followed, true: Followed) -> np.ndarray:
    """(2,): made pixels for each true one, across and down."""
    scale = np.array(made.track.size) / np.array(true.track.size)
    if abs(scale[0] / scale[1] - 1) > 0.01:
        raise UserError(
            f"{made.path} is {made.track.size[0]} × {made.track.size[1]} and {true.path} {true.track.size[0]} ×"
            f" {true.track.size[1]}; pictures of another shape cannot be compared pixel by pixel."
        )
    return scale


def _frame(
    crops: tuple[np.ndarray, np.ndarray],
    pair: tuple[np.ndarray, np.ndarray],
    clips: tuple[Followed, Followed],
    i: int,
    tools: Tools,
) -> dict[str, float]:
    made, true = crops
    mouth = mouth_region(SIDE)
    likeness = ssim_map(made, true)
    values = {
        "psnr_mouth": psnr(made, true, mouth),
        "psnr_face": psnr(made, true),
        "ssim_mouth": float(likeness[mouth].mean()),
        "ssim_face": float(likeness[5:-5, 5:-5].mean()),
        "gradient_similarity": gradient_similarity(made, true, mouth),
        "thumbnail_likeness": thumbnail_likeness(made, true),
    }
    if tools.lpips:
        values["lpips"] = tools.lpips(made, true)
    if tools.identity and clips[0].track.present[i]:
        faces = [face_112(frame, clip.track.landmarks[i]) for frame, clip in zip(pair, clips, strict=True)]
        values["identity"] = tools.identity.similarity(*faces)
    return values


def _against(made: _Looks, true: _Looks) -> dict[str, float]:
    theirs = true.values("_true")
    values = made.values() | theirs
    if theirs.get("sharpness_true"):
        values["sharpness_ratio"] = values["sharpness"] / theirs["sharpness_true"]
    values.pop("sharpness_true", None)
    return values

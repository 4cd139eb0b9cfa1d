"""All measures of a clip on its own, and of a generated clip against the true one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError
from ..face.align import align_matrices, crop_face, crop_matrix
from ..face.identity import embed, likeness
from ..models.syncnet import SyncNet
from ..models.vae import VAE
from ..settings import ProgressCallback
from .clips import TrackedClip, sync_clip
from .identity import face_112, identity_similarity
from .image_metrics import Frechet, flicker, gradient_similarity, lips_region, mouth_region, psnr, sharpness, ssim_map
from .landmark_sync import Score, score_track
from .mouth_motion import compare_motion
from .networks import Lpips, Network, Quality
from .syncnet_sync import SyncScore

SIDE = 256
"""Side of the aligned crops in which images are compared."""


@dataclass(frozen=True)
class Metric:
    """better: "higher", "lower" or "" (meaningful only against another clip). needs: the option for its network."""

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
    "face_likeness": Metric("face likeness (dlib)", "", "higher", 2),
    "quality": Metric("image quality without reference", "", "higher", 3, "--quality-network"),
    "quality_true": Metric("image quality, of the truth", "", "", 3),
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
class Networks:
    """Networks of the user's; None for those not given."""

    syncnet: SyncNet | None = None
    vae: VAE | None = None
    lpips: Lpips | None = None
    identity: Network | None = None
    fid: Frechet | None = None
    fvd: Frechet | None = None
    quality: Quality | None = None

    @property
    def frechets(self) -> dict[str, Frechet]:
        return {name: net for name, net in (("fid", self.fid), ("fvd", self.fvd)) if net}


@dataclass(frozen=True)
class Result:
    """values: metric to number. skipped: metric to reason. curves: metric to (F,) at fps, NaN if unknown."""

    name: str
    frames: int
    fps: float
    values: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    sync: SyncScore | None = None
    score: Score | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {k: round(v, 6) if np.isfinite(v) else None for k, v in self.values.items()}
        facts: dict[str, Any] = {"name": self.name, "frames": self.frames, "fps": round(self.fps, 6)}
        facts |= {"values": values, "skipped": self.skipped}
        return facts | ({"sync": self.sync.as_dict()} if self.sync else {})


def measure(
    clip: TrackedClip, networks: Networks, *, name: str = "", on_progress: ProgressCallback | None = None
) -> Result:
    """One clip without a reference: sync (by SyncNet if given, by landmarks), sharpness and flicker."""
    values, skipped, sync, score = _measure_sync(clip, networks, on_progress)
    if networks.quality is None:
        skipped["quality"] = f"give {METRICS['quality'].needs}"
    stats, matrices = _CropStats(networks.quality), align_matrices(clip.track.points, SIDE)
    points = in_crops(clip.track.landmarks, matrices)
    for i, frame in _face_frames(clip, clip.read()):
        if frame is None:
            stats.begin_segment()
        else:
            stats.add(crop_face(frame, matrices[i], SIDE), points[i])
    values |= stats.values()
    frames = len(clip.source_frames)
    return Result(name or clip.path.name, frames, float(clip.fps), values, skipped, {}, sync, score)


def compare(
    made: TrackedClip,
    true: TrackedClip,
    networks: Networks,
    *,
    name: str = "",
    on_progress: ProgressCallback | None = None,
) -> Result:
    """A generated clip against the true one, frame by frame at the lower frame rate, both cropped at the true face.

    Frames past the end of the shorter clip do not count. networks.fid and networks.fvd collect features over clips.
    UserError: another aspect ratio, no face in common.
    """
    values, skipped, sync, score = _measure_sync(made, networks, on_progress)
    rate = min(made.fps, true.fps)
    made, true = made.at_rate(rate), true.at_rate(rate)
    motion = compare_motion(made.track, true.track)
    if motion is None:
        raise UserError(f"{made.path} and {true.path} never show a face in the same frame; are they the same clip?")
    values |= {"opening_error": motion.opening_error, "lip_distance": motion.lip_distance}
    if motion.opening_correlation is None:
        skipped["opening_correlation"] = "one of the two mouths never moves"
    else:
        values["opening_correlation"] = motion.opening_correlation
    curves, totals = _compare_frames(made, true, networks)
    values |= {key: float(np.nanmean(curve)) for key, curve in curves.items()} | totals
    missing = [key for key in ("lpips", "identity", "quality", "fid", "fvd") if getattr(networks, key) is None]
    skipped |= {key: f"give {METRICS[key].needs}" for key in missing}
    curves |= {"lip_distance": motion.per_frame, "opening": motion.openings[0], "opening_true": motion.openings[1]}
    frames = len(motion.per_frame)
    return Result(name or made.path.name, frames, float(rate), values, skipped, curves, sync, score)


def _measure_sync(
    clip: TrackedClip, networks: Networks, on_progress: ProgressCallback | None
) -> tuple[dict[str, float], dict[str, str], SyncScore | None, Score | None]:
    values: dict[str, float] = {}
    skipped: dict[str, str] = {}
    sync = score = None
    by_net, by_landmarks = ("lse_c", "lse_d", "sync_offset"), ("landmark_confidence", "landmark_offset")
    if networks.syncnet is None:
        skipped |= dict.fromkeys(by_net, f"give {METRICS['lse_c'].needs}")
    else:
        try:
            sync = sync_clip(networks.syncnet, clip, clip.speech(), vae=networks.vae, on_progress=on_progress)
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


def _face_frames(clip: TrackedClip, frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """(index, frame) of the frames with the face; (index, None) at the beginning of each segment."""
    starts = {start for start, _ in clip.track.segments}
    for i, frame in enumerate(frames):
        if i in starts:
            yield i, None
        if clip.track.present[i]:
            yield i, frame


class _CropStats:
    """Sharpness, flicker and, by its network, the quality of a sequence of aligned crops."""

    def __init__(self, network: Quality | None) -> None:
        self.network = network
        self.quality: list[float] = []
        self.sharp: list[float] = []
        self.skin: list[float] = []
        self.lips: list[float] = []
        self._last: list[tuple[np.ndarray, np.ndarray]] = []
        self._mouth = mouth_region(SIDE)

    def begin_segment(self) -> None:
        """Flicker is not measured across two shots."""
        self._last = []

    def add(self, crop: np.ndarray, points: np.ndarray) -> None:
        lips = lips_region(points, SIDE)
        self.sharp.append(sharpness(crop, lips))
        if self.network is not None:
            self.quality.append(self.network(crop))
        self._last = [*self._last[-2:], (crop, lips)]
        if len(self._last) == 3:
            (a, _), (b, _), (c, _) = self._last
            inside = np.logical_or.reduce([mask for _, mask in self._last])
            self.skin.append(flicker(a, b, c, self._mouth & ~inside))
            self.lips.append(flicker(a, b, c, inside))

    def values(self, suffix: str = "") -> dict[str, float]:
        named = {"quality": self.quality, "sharpness": self.sharp, "flicker_skin": self.skin, "flicker_lips": self.lips}
        return {key + suffix: float(np.mean(found)) for key, found in named.items() if found}


def _compare_frames(
    made: TrackedClip, true: TrackedClip, networks: Networks
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Curves of the measures of single frames, and values of the others."""
    scale = _scale(made, true)
    matrices = align_matrices(true.track.points, SIDE)
    made_matrices = matrices.copy()  # from pixels of the generated frames, by way of the true ones
    made_matrices[..., 2] += made_matrices[..., :2] @ (0.5 / scale - 0.5)
    made_matrices[..., :2] = made_matrices[..., :2] / scale
    frames = min(len(made.source_frames), len(true.source_frames))
    made_points = in_crops(made.track.landmarks[:frames], made_matrices[:frames])
    true_points = in_crops(true.track.landmarks, matrices)
    made_stats, true_stats = _CropStats(networks.quality), _CropStats(networks.quality)
    frechets = networks.frechets.values()
    curves: dict[str, np.ndarray] = {}
    for i, pair in _face_frames(true, zip(made.read(), true.read(), strict=False)):
        if pair is None:
            made_stats.begin_segment()
            true_stats.begin_segment()
            for frechet in frechets:
                frechet.finish()
            continue
        crops = crop_face(pair[0], made_matrices[i], SIDE), crop_face(pair[1], matrices[i], SIDE)
        made_stats.add(crops[0], made_points[i])
        true_stats.add(crops[1], true_points[i])
        values = _compare_crops(*crops, networks)
        if made.track.present[i]:
            seen = [(frame, clip.track.landmarks[i]) for frame, clip in zip(pair, (made, true), strict=True)]
            values["face_likeness"] = float(likeness(*(embed(*one) for one in seen)))
            if networks.identity:
                values["identity"] = identity_similarity(networks.identity, *(face_112(*one) for one in seen))
        for key, value in values.items():
            curves.setdefault(key, np.full(frames, np.nan))[i] = value
        for frechet in frechets:
            frechet.add(*crops)
    for frechet in frechets:
        frechet.finish()
    totals = made_stats.values() | true_stats.values("_true")
    sharpness_true = totals.pop("sharpness_true", None)
    if sharpness_true:
        totals["sharpness_ratio"] = totals["sharpness"] / sharpness_true
    return curves, totals


def _scale(made: TrackedClip, true: TrackedClip) -> np.ndarray:
    """(2,): generated pixels per true pixel, horizontally and vertically."""
    scale = np.array(made.track.size) / np.array(true.track.size)
    if abs(scale[0] / scale[1] - 1) > 0.01:
        raise UserError(
            f"{made.path} is {made.track.size[0]} × {made.track.size[1]} and {true.path} {true.track.size[0]} ×"
            f" {true.track.size[1]}; give clips of the same aspect ratio."
        )
    return scale


def _compare_crops(made: np.ndarray, true: np.ndarray, networks: Networks) -> dict[str, float]:
    mouth = mouth_region(SIDE)
    ssim = ssim_map(made, true)
    values = {
        "psnr_mouth": psnr(made, true, mouth),
        "psnr_face": psnr(made, true),
        "ssim_mouth": float(ssim[mouth].mean()),
        "ssim_face": float(ssim[5:-5, 5:-5].mean()),
        "gradient_similarity": gradient_similarity(made, true, mouth),
    }
    return values | ({"lpips": networks.lpips(made, true)} if networks.lpips else {})

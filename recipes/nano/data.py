"""Training data: the aligned faces of clips and portraits, with their meshes in three dimensions and audio tokens."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.audio.whisper_features import audio_windows, encode_audio
from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_matrix, face_size, resample, rescaled
from latentsync.face.choose import choose
from latentsync.face.detect import Box, FaceFinder, three_points
from latentsync.face.track import find_tracks
from latentsync.media.image import read_image
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.models.whisper import WhisperEncoder
from latentsync.weights.registry import find
from latentsync.weights.whisper_files import load_whisper

from . import mesh as geometry

RESOLUTION = 192
MARGIN = 8
"""Crops have R / MARGIN extra pixels on each side, so that augmentation may move and turn them."""
HELD_OUT = 0.25
"""The last quarter of every clip is never trained on."""

CLIPS = ("latentsync_demo*", "obama_*", "reagan_*", "grid/*", "grid_s1/*")
"""Under the media folder's clips/: those whose license allows weights to be shipped."""
STRANGERS = ("hdtf_*", "videoretalking_*", "edtalk_*")
"""Clips of people that are not in the training data, for evaluation."""
DELAYS = {
    "latentsync_demo3": 0.07,
    "obama_b_30s": 0.08,
    "hdtf_wda_aoc": 0.1,
    "hdtf_wda_katiehill": 0.1,
    "edtalk_pose_source2_60s": 0.1,
}
"""Seconds by which a clip's audio is late."""
SPOKEN, PAUSE = (0.8, 2.2), (0.6, 2.5)
"""Seconds of speech between two pauses, and of these."""
NOISE = (-60.0, -30.0)
"""Decibels of a pause's noise, to the speech."""
CLOSING, OPENING = 0.2, 0.14
"""Seconds at a pause's ends in which the mouth still closes, or opens already."""
PAUSE_FPS = 25
HELD_OUT_PORTRAITS = 8
"""Every eighth portrait is never trained on: 15 people."""


def clip_paths(media: Path, patterns: Sequence[str] = CLIPS) -> list[Path]:
    """The recipe's clips, or others, in a fixed order."""
    return [path for pattern in patterns for path in sorted((media / "clips").glob(pattern))]


def portrait_paths(media: Path) -> dict[str, list[Path]]:
    """Pictures of each person: neutral ones first, then a smiling one where there is one."""
    folder, people = media / "portraits", {}
    for path in sorted((folder / "london_neutral").glob("*.jpg")):
        smiling = folder / "london_smiling" / path.name.replace("_03", "_08")
        people[f"london-{path.stem[:3]}"] = [path, *([smiling] if smiling.exists() else [])]
    for path in sorted((folder / "canada").glob("*.jpg")):
        people[f"canada-{path.stem}"] = [path]
    if cc0 := sorted((folder / "cc0").glob("*.jpg")):
        people["cc0-one"] = cc0
    return people


@dataclass(frozen=True)
class Person:
    """One face: a clip in which it speaks, or still pictures of it.

    crops: (F, W, W, 3) uint8 RGB with a margin, W = R + 2R/MARGIN. mesh: (F, 468, 3) float32 in the upright face's
    pixels (before its stretch to a square). audio: (F, 50, D) float16, nothing for stills. pauses: (M, 50, D) float16,
    what is heard in pauses amid what is said on time that may be trained on.
    """

    name: str
    crops: np.ndarray
    mesh: np.ndarray
    audio: np.ndarray = field(default_factory=lambda: np.zeros((0, 50, 384), np.float16))
    pauses: np.ndarray = field(default_factory=lambda: np.zeros((0, 50, 384), np.float16))

    @property
    def speaks(self) -> bool:
        return len(self.audio) > 0

    @property
    def identity(self) -> str:
        return self.name.split("_")[0]

    @property
    def train_frames(self) -> int:
        return int(len(self.crops) * (1 - HELD_OUT)) if self.speaks else len(self.crops)

    @cached_property
    def rest(self) -> np.ndarray:
        """(468, 3): the mouth closed, in the pose of this median."""
        opening = geometry.opening(self.mesh[: self.train_frames])
        calm = np.argsort(opening)[: max(1, len(opening) // 12)] if self.speaks else [0]
        return np.median(self.mesh[calm], 0)

    @cached_property
    def movement(self) -> np.ndarray:
        """(F, 468, 3): how the face of each frame differs from the one at rest, head pose taken out."""
        return np.stack([geometry.pose(mesh, self.rest).apply(mesh) - self.rest for mesh in self.mesh])

    def closed(self, frame: int) -> np.ndarray:
        """(468, 3): the face at rest in the pose of one frame."""
        return geometry.pose(self.rest, self.mesh[frame]).apply(self.rest)


# ---- preparing -------------------------------------------------------------------------------------------------------


def face_to_crop(resolution: int) -> np.ndarray:
    """(2, 3): from the upright face's pixels to the wide crop's."""
    width, height = face_size(resolution)
    matrix = rescaled(np.eye(2, 3), resolution / width, resolution / height)
    matrix[:, 2] += resolution // MARGIN
    return matrix


def prepare_clip(path: Path, finder: FaceFinder, whisper: WhisperEncoder, delay: float = 0.0) -> dict[str, np.ndarray]:
    """delay: seconds by which its audio is late."""
    info = probe(path)
    with VideoReader(info) as reader:
        track = choose(find_tracks(reader.read(range(info.frames)), finder), "largest")
    start, stop = max(track.segments, key=lambda s: s[1] - s[0])
    matrices, crops, meshes = align_matrices(track.points, RESOLUTION), [], []
    with VideoReader(info) as reader:
        for i, frame in enumerate(reader.read(range(start, stop)), start):
            meshes.append(_mesh(frame, track.landmarks[i], matrices[i], finder, meshes))
            crops.append(_wide_crop(frame, matrices[i]))
    mesh = cv2.GaussianBlur(np.stack(meshes).reshape(len(meshes), -1), (1, 3), sigmaX=0.6)  # along time, against jitter
    tensors = {"crops": np.stack(crops), "mesh": mesh.reshape(len(meshes), -1, 3).astype(np.float32)}
    waveform, rate = load_audio(path)
    waveform = F.pad(waveform, (-round(delay * rate), 0))  # a negative pad cuts the start off
    tokens = audio_windows(encode_audio(waveform, rate, whisper), info.fps, info.frames)[start:stop]
    tensors["audio"] = tokens.numpy().astype(np.float16)
    trained_on = waveform[: int((start + (stop - start) * (1 - HELD_OUT)) / info.fps * rate)]
    tensors["pauses"] = heard_in_pauses(trained_on, rate, whisper, seed=path.stem).numpy().astype(np.float16)
    return tensors


def prepare_stills(paths: Sequence[Path], finder: FaceFinder) -> dict[str, np.ndarray]:
    crops, meshes = [], []
    for path in paths:
        picture = read_image(path)
        face = finder.detect(picture)[0]
        matrix = align_matrices(three_points(face.points68)[None], RESOLUTION)[0]
        meshes.append(_mesh(picture, face.points68, matrix, finder, meshes))
        crops.append(_wide_crop(picture, matrix))
    return {"crops": np.stack(crops), "mesh": np.stack(meshes).astype(np.float32)}


def _mesh(
    frame: np.ndarray, points68: np.ndarray, matrix: np.ndarray, finder: FaceFinder, before: list[np.ndarray]
) -> np.ndarray:
    box: Box = (*points68.min(0).tolist(), *points68.max(0).tolist())
    found = finder.mesh(frame, box)
    if found is None:
        if not before:
            raise UserError("has no face mesh in its first frame")
        return before[-1]
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    points = found[: geometry.POINTS]
    return np.c_[points[:, :2] @ matrix[:, :2].T + matrix[:, 2], points[:, 2] * scale]


def _wide_crop(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    margin = RESOLUTION // MARGIN
    wide = crop_matrix(matrix, RESOLUTION)
    wide[:, 2] += margin
    return resample(frame, wide, RESOLUTION + 2 * margin)


def heard_in_pauses(waveform: Tensor, rate: int, whisper: WhisperEncoder, *, seed: str = "") -> Tensor:
    """(M, 50, D): tokens of the moments of pauses that are put into speech (T,), half of them with faint noise.

    Whisper's states drift in a pause between words, unlike in silence alone: without these the mouth opened again.
    """
    random, parts, spans = np.random.default_rng([*seed.encode()]), [], []
    at = made = 0
    while at < len(waveform):
        spoken = waveform[at : at + int(random.uniform(*SPOKEN) * rate)]
        noise = random.standard_normal(int(random.uniform(*PAUSE) * rate)).astype(np.float32)
        level = 10 ** (random.uniform(*NOISE) / 20) if random.random() < 0.5 else 0.0
        parts += [spoken, torch.from_numpy(noise) * waveform.std() * level]
        begin = made + len(spoken)
        at, made = at + len(spoken), begin + len(noise)
        spans.append((begin / rate, made / rate))
    frames = int(made / rate * PAUSE_FPS)
    tokens = audio_windows(encode_audio(torch.cat(parts), rate, whisper), PAUSE_FPS, frames)
    times = np.arange(frames) / PAUSE_FPS
    inside = np.any([(times >= begin + CLOSING) & (times <= end - OPENING) for begin, end in spans], 0)
    return tokens[torch.from_numpy(inside)]


Task = tuple[str, list[Path]]


def prepare(
    media: Path, folder: Path, *, processes: int = 2, on_item: Callable[[str], None] = lambda message: None
) -> None:
    """Prepare clips and portraits that are not in folder yet; what cannot be used is reported and skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks: list[Task] = [(path.stem, [path]) for path in clip_paths(media)] + [*portrait_paths(media).items()]
    tasks = [(name, paths) for name, paths in tasks if not (folder / f"{name}.safetensors").exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for message in pool.map(partial(_prepare_all, folder=folder), [tasks[i::processes] for i in range(processes)]):
            on_item(message)


def _prepare_all(tasks: list[Task], folder: Path) -> str:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    skipped = []
    with FaceFinder(find("face_landmarker.task")) as finder:
        whisper = load_whisper("tiny.en")
        for name, paths in tasks:
            try:
                still = len(paths) > 1 or paths[0].suffix == ".jpg"
                delay = DELAYS.get(name, 0.0)
                tensors = prepare_stills(paths, finder) if still else prepare_clip(paths[0], finder, whisper, delay)
                save_file(tensors, folder / f"{name}.safetensors", {"name": name})
            except (UserError, IndexError) as error:
                skipped.append(f"{name} skipped: {error}")
    return "; ".join([f"{len(tasks) - len(skipped)} ready", *skipped])


def load_people(folder: Path) -> list[Person]:
    """All prepared people of a folder, sorted by name."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{folder} has nobody prepared; make them by `python -m recipes.nano prepare`.")
    return [load_person(path) for path in paths]


def load_person(path: Path) -> Person:
    with safe_open(path, "numpy") as file:
        name = file.metadata()["name"]
    tensors = load_file(path)
    heard = {key: tensors[key] for key in ("audio", "pauses") if key in tensors}
    return Person(name, tensors["crops"], tensors["mesh"], **heard)


def held_out_portraits(people: Sequence[Person]) -> list[Person]:
    """People with stills only that are never trained on."""
    return [p for p in people if not p.speaks and p.identity != "cc0-one"][::HELD_OUT_PORTRAITS]

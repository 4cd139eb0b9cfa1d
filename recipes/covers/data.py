"""What is trained on: faces of the recipe of nano, as they were taken and as puppets, and samples drawn over them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from latentsync.face.occlusion import SIDE, TOP
from latentsync.files import atomic_path
from recipes.nano.data import RESOLUTION, Person, face_to_crop, held_out_portraits
from recipes.nano.scenes import SceneMaker

from .draw import INNER, MARGIN, Faces, sample
from .draw import SIDE as WIDE

STATES = (1, 2, 3, 5)
"""Those of a scene that are taken: it speaks in them, with one picture and one light."""
ALIKE = "s1_"
"""The man of 60 clips; few frames of each are enough."""
STILL = 3
"""How often each still counts."""


def make_faces(people: Sequence[Person], scenes: int, seed: int) -> Faces:
    """Frames of the first three quarters of clips, stills of those who are not held out, and puppets of both."""
    random, held_out = np.random.default_rng(seed), {p.name for p in held_out_portraits(people)}
    pictures, outlines = [], []
    for person in people:
        if person.name in held_out:
            continue
        frames = np.repeat(np.arange(len(person.crops)), STILL)
        if person.speaks:
            count = 2 if person.name.startswith(ALIKE) else 40 if person.train_frames > 150 else 12
            frames = random.choice(person.train_frames, min(count, person.train_frames), replace=False)
        for frame in frames.tolist():
            pictures.append(cv2.resize(person.crops[frame], (WIDE, WIDE), interpolation=cv2.INTER_AREA))
            outlines.append(_outline(person.mesh[frame]))
    maker = SceneMaker(people, seed)
    for _ in range(scenes):
        for picture in maker.scene()[0][list(STATES)]:
            small = cv2.resize(picture, (INNER, INNER), interpolation=cv2.INTER_AREA)
            pictures.append(np.pad(small, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "symmetric"))
    return Faces(np.stack(pictures), np.stack(outlines))


def _outline(mesh: np.ndarray) -> np.ndarray:
    """(WIDE, WIDE) uint8: 255 within the face."""
    matrix = face_to_crop(RESOLUTION)
    points = (mesh[:, :2] @ matrix[:, :2].T + matrix[:, 2]) * INNER / RESOLUTION
    return cv2.fillConvexPoly(
        np.zeros((WIDE, WIDE), np.uint8), cv2.convexHull(np.rint(points).astype(np.int32)), (255,)
    )


def write_samples(
    faces: Faces, folder: Path, files: int, seed: int, *, per_file: int = 2000, processes: int = 2
) -> Iterator[Path]:
    """per_file samples a file, x (N, 48, 64, 3) and m (N, 48, 64), both uint8; files that are there already are kept.
    The same for a seed, however many processes there are."""
    folder.mkdir(parents=True, exist_ok=True)
    faces_file = folder / "faces.npz"
    with atomic_path(faces_file) as unfinished, unfinished.open("wb") as file:
        np.savez(file, pictures=faces.pictures, outlines=faces.outlines)
    missing = [number for number in range(files) if not sample_file(folder, number).exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_write_file, faces_file, folder, seed, per_file), missing)


def sample_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _write_file(faces_file: Path, folder: Path, seed: int, per_file: int, number: int) -> Path:
    cv2.setNumThreads(1)
    loaded, path = np.load(faces_file), sample_file(folder, number)
    pixels, masks = samples(Faces(loaded["pictures"], loaded["outlines"]), (seed, number), per_file)
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, x=pixels, m=masks)
    return path


def samples(faces: Faces, seed: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    drawn = [sample(random, faces, SIDE) for _ in range(count)]
    return np.stack([pixels[TOP:] for pixels, _ in drawn]), np.stack([mask[TOP:] for _, mask in drawn])


def load_samples(folder: Path, files: int) -> tuple[np.ndarray, np.ndarray]:
    loaded = [np.load(sample_file(folder, number)) for number in range(files)]
    return np.concatenate([one["x"] for one in loaded]), np.concatenate([one["m"] for one in loaded])

"""People whose mouths are known: the mesh of a real portrait whose jaw moves as told, and scenes made of numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import latentsync
from latentsync.models.unet import lips_window
from recipes.nano import mesh as geometry
from recipes.nano.data import RESOLUTION, Person, face_to_crop, prepare_stills
from recipes.nano.puppets import Speech
from recipes.nano.scenes import STATES, Scenes, mouth_box
from recipes.nano.unet import UNetTraining

PORTRAIT = Path(latentsync.__file__).parent / "assets" / "portrait.jpg"
GREEN, RED = (0, 255, 0), (120, 40, 40)
UNET = UNetTraining(
    widths=(16, 32),
    cross=(False, True),
    steps=1000,
    batch_size=1,
    frames=4,
    decoded_frames=2,
    learning_rate=4e-3,
    easy_until=-2,
    mixed_from=-1,
    pictures_from=0,
    adversarial_from=1000,
    decoder_from=1000,
    report_every=1,
)


@dataclass(frozen=True, repr=False)
class Face:
    """The portrait's wide crop and mesh as found, and how much of the jaw's movement each point takes part in."""

    crop: np.ndarray
    mesh: np.ndarray
    weight: np.ndarray

    @property
    def closed(self) -> np.ndarray:
        return self.mesh + self.weight * (self.mesh[geometry.UPPER] - self.mesh[geometry.LOWER])

    def opened(self, opening: float) -> np.ndarray:
        """(468, 3) with that opening over the width of the mouth; only the lower lip and the chin move."""
        return self.closed + self.weight * (0, opening * geometry.mouth_width(self.closed), 0)


def detected_face(finder) -> Face:
    prepared = prepare_stills([PORTRAIT], finder)
    crop, mesh = prepared["crops"][0], prepared["mesh"][0].astype(np.float64)
    left, right = mesh[geometry.LEFT], mesh[geometry.RIGHT]
    away = np.clip(np.abs(mesh[:, 0] - (left + right)[0] / 2) / ((right - left)[0] / 2), 0, 1)
    weight = np.where(mesh[:, 1] > max(left[1], right[1]), np.cos(np.pi / 2 * away), 0)
    return Face(crop, mesh, (weight / weight[geometry.LOWER])[:, None])


def turned(mesh: np.ndarray, degrees: tuple[float, float, float]) -> np.ndarray:
    """Turned about the middle of what does not speak: nod, shake, tilt."""
    turn, _ = cv2.Rodrigues(np.deg2rad(degrees))
    middle = mesh[list(geometry.STABLE)].mean(0)
    return (mesh - middle) @ turn.T + middle


def in_crop(mesh: np.ndarray) -> np.ndarray:
    """(468, 2) pixels of the wide crop."""
    matrix = face_to_crop(RESOLUTION)
    return mesh[:, :2] @ matrix[:, :2].T + matrix[:, 2]


def speaker(face: Face, openings, *, name="latentsync_demo1", turns=None, inside=None, numbers=1, seed=0) -> Person:
    """A clip of the portrait. inside: a color between the lips. numbers: in how many ways the lips move, the first of
    them the jaw; the audio's channels say how far in each."""
    random = np.random.default_rng(seed)
    moves = np.concatenate([np.reshape(openings, (-1, 1)), random.normal(0, 1, (len(openings), numbers - 1))], 1)
    ways = np.random.default_rng(7).normal(0, 1, (numbers - 1, geometry.POINTS, 3)) * (face.weight > 0)
    meshes = np.stack([face.opened(m[0]) + np.tensordot(m[1:], ways, 1) for m in moves])
    if turns is not None:
        meshes = np.stack([turned(mesh, turn) for mesh, turn in zip(meshes, turns, strict=True)])
    crops = np.broadcast_to(face.crop, (len(meshes), *face.crop.shape))
    if inside:
        crops = np.stack([painted(face.crop, mesh, inside) for mesh in meshes])
    audio = random.normal(0, 0.1, (len(meshes), 50, 384))
    audio[:, :, : 8 * numbers] += np.repeat(moves / moves.std(0), 8, 1)[:, None]
    return Person(name, crops, meshes.astype(np.float32), audio.astype(np.float16))


def painted(crop: np.ndarray, mesh: np.ndarray, color) -> np.ndarray:
    outline = np.round(in_crop(mesh)[list(geometry.INNER)]).astype(np.int32)
    return cv2.fillPoly(crop.copy(), [outline], color)


def portrait(face: Face, name="portrait") -> Person:
    """Two stills of the same picture: the first is said to be closed, so that the second is known to be open."""
    return Person(name, np.stack([face.crop] * 2), np.stack([face.closed, face.mesh]).astype(np.float32))


def a_crowd(face: Face, speakers) -> list[Person]:
    """Two who speak and ten portraits, of which the first and the ninth are held out."""
    return [*speakers, *(replace(portrait(face), name=f"p{i}") for i in range(10))]


# ---- scenes of numbers -----------------------------------------------------------------------------------------------

CELLS = RESOLUTION // 8
WINDOW = lips_window(CELLS, CELLS, "jaw")
CHANNELS = torch.tensor([1.0, -1.0, 0.5, 0.0])[:, None, None]


def pattern(opening: float) -> torch.Tensor:
    """How an opening shows in latents: where a residual network can show it."""
    return 8 * opening * CHANNELS * WINDOW


def number_scenes(people, count: int, seed: int = 0) -> Scenes:
    """Scenes of noise in which openings show. Every second is of a clip, whose own frame says its own."""
    random, torch_random = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    speakers = [i for i, p in enumerate(people) if p.speaks]
    rows, columns = mouth_box(RESOLUTION)
    parts = []
    for n in range(count):
        said = [
            (int(who), int(random.integers(4, people[who].train_frames))) for who in random.choice(speakers, STATES)
        ]
        said[0] = (Speech.NATURAL, 0) if n % 2 else said[0]
        said[1] = (Speech.SILENT, 0)
        openings = [float(geometry.opening(people[p].mesh[f])) if p >= 0 else -0.05 * (p + 2) for p, f in said]
        base = F.interpolate(torch.randn(1, 4, 4, 4, generator=torch_random), size=CELLS, mode="bilinear")[0]
        latents = torch.stack([base + pattern(opening) for opening in openings])
        pixels = (Decoder()(latents) * 127.5 + 127.5).clamp(0, 255).byte()
        parts.append({
            "latents": latents.half(),
            "masked": base.half(),
            "picture": pixels[0],
            "mouths": pixels[:, :, rows, columns],
            "person": torch.tensor([p for p, _ in said], dtype=torch.int32),
            "frame": torch.tensor([f for _, f in said], dtype=torch.int32),
            "opening": torch.tensor(openings),
        })  # fmt: skip
    return Scenes(**{key: torch.stack([part[key] for part in parts]).detach() for key in parts[0]})


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Any fixed map from pixels to a grid of a factor 8."""
    return F.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


class Decoder(nn.Module):
    """The way back, blurred, with one number to learn."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 0.15))

    def forward(self, latents):
        return self.gain * F.interpolate(latents[:, :3], scale_factor=8, mode="bilinear")


def plain_vae():
    """What the trainer takes of a VAE."""
    decoder = Decoder()
    return SimpleNamespace(model=SimpleNamespace(decoder=decoder), decode=decoder)


def floats(losses):
    return {name: float(value) for name, value in losses.items()}

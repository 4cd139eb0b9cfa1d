"""Scenes: one picture of a face in several states of its mouth, all else alike, encoded for training.

A state says a moment of speech, or is the picture as it was taken. Any state can be the reference of any other, as a
network meets it when it repaints a picture: the same face in the same pose with another mouth.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsync.face.mask import mouth_mask
from latentsync.files import atomic_path

from .data import RESOLUTION, Person, held_out_portraits
from .puppets import Puppet, Speakers, Speech, random_look

Encode = Callable[[Tensor], Tensor]
"""Pixels (N, 3, R, R) in [-1, 1] to scaled latents (N, C, h, w)."""

STATES = 7
"""Of a scene: the picture as it was taken, then six in which it speaks or is silent."""
P_PORTRAIT = 0.6
"""Share of scenes with stills, of which there are more people; the others take frames of clips."""
P_SILENT = 0.08
PER_FILE = 16


@dataclass(frozen=True)
class Scenes:
    """N scenes of S states. latents (N, S, C, h, w) float16; masked (N, C, h, w) float16; picture (N, 3, R, R) uint8,
    the first state, as it was taken; mouths (N, S, 3, H, W) uint8, the mouth_box of all states; person, frame (N, S)
    int32, what is said (see Speech); opening (N, S) float32, over the width of the mouth at rest."""

    latents: Tensor
    masked: Tensor
    picture: Tensor
    mouths: Tensor
    person: Tensor
    frame: Tensor
    opening: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def state(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name).contiguous() for f in fields(self)}


def mouth_box(resolution: int) -> tuple[slice, slice]:
    """Rows and columns of a crop, whole latent cells, that hold nearly all that is repainted."""
    cells = resolution // 8
    return slice(8 * round(0.42 * cells), resolution), slice(8 * round(0.18 * cells), 8 * round(0.82 * cells))


class SceneMaker:
    """Draws scenes of the people that are trained on. Deterministic for a seed."""

    def __init__(self, people: Sequence[Person], seed: int, p_portrait: float = P_PORTRAIT) -> None:
        self.people, self.p_portrait = people, p_portrait
        held_out = {p.name for p in held_out_portraits(people)}
        self.speakers = Speakers(people)
        self.stills = [i for i, p in enumerate(people) if not p.speaks and p.name not in held_out]
        self.clips = [i for i, p in enumerate(people) if p.speaks]
        self.chances = clip_chances([people[i] for i in self.clips])
        self.random = np.random.default_rng(seed)

    def _clip(self) -> int:
        return self.clips[int(self.random.choice(len(self.clips), p=self.chances))]

    def puppet(self) -> tuple[Puppet, int]:
        """A picture of somebody with a random look; also the clip that it is from, or -1."""
        random = self.random
        portrait = random.random() < self.p_portrait
        who = self.stills[int(random.integers(len(self.stills)))] if portrait else self._clip()
        person = self.people[who]
        frame = int(random.integers(person.train_frames))
        inside = who if who in self.speakers.sharp else None
        return Puppet(person, frame, self.speakers, inside, random_look(random), random), -1 if portrait else who

    def speeches(self, clip: int) -> list[Speech]:
        """What the states say: near moments of one clip, so that the network learns to tell them apart, and others."""
        random = self.random
        driver = clip if clip >= 0 and random.random() < 0.5 else self._clip()
        said = [Speech(Speech.NATURAL)]
        for i in range(STATES - 1):
            if random.random() < P_SILENT:
                said.append(Speech(Speech.SILENT))
                continue
            who = driver if i < STATES // 2 else self._clip()
            said.append(Speech(who, int(random.choice(np.array(self.speakers.frames[who])))))
        return said

    def scene(self) -> tuple[np.ndarray, list[Speech], list[float]]:
        """Pictures (S, R, R, 3) uint8, what they say, and how far they are open. A clip's own frame says its own."""
        puppet, clip = self.puppet()
        said = self.speeches(clip)
        pictures = np.stack([puppet.says(speech) for speech in said])
        openings = [puppet.opening(speech) for speech in said]
        if clip >= 0:
            said[0] = Speech(clip, puppet.frame)
        return pictures, said, openings


def encode_states(encode: Encode, pixels: Tensor, margin: int = 2) -> Tensor:
    """Latents of pictures (S, 3, R, R) that are alike but for the mouth: the first is encoded whole, of the others the
    part that speech moves, with some cells around it (TAESD's layers see far, but weigh what is far off little)."""
    top, left = RESOLUTION // 4, RESOLUTION // 24
    latents = encode(pixels[:1]).repeat(len(pixels), 1, 1, 1)
    cells = RESOLUTION // 8
    rows, columns = slice(top // 8 + margin, cells), slice(left // 8 + margin, cells - left // 8 - margin)
    for i in range(1, len(pixels)):
        part = encode(pixels[i : i + 1, :, top:, left : RESOLUTION - left])
        latents[i, :, rows, columns] = part[0, :, margin:, margin:-margin]
    return latents


def make_scenes(maker: SceneMaker, encode: Encode, count: int) -> Scenes:
    keep = torch.from_numpy(mouth_mask(RESOLUTION))
    rows, columns = mouth_box(RESOLUTION)
    parts: list[dict[str, Tensor]] = []
    for _ in range(count):
        pictures, said, openings = maker.scene()
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append({
            "latents": encode_states(encode, pixels).half(),
            "masked": encode(pixels[:1] * keep)[0].half(),
            "picture": torch.from_numpy(pictures[0].transpose(2, 0, 1).copy()),
            "mouths": torch.from_numpy(pictures[:, rows, columns].transpose(0, 3, 1, 2).copy()),
            "person": torch.tensor([s.person for s in said], dtype=torch.int32),
            "frame": torch.tensor([s.frame for s in said], dtype=torch.int32),
            "opening": torch.tensor(openings, dtype=torch.float32),
        })  # fmt: skip
    return Scenes(**{key: torch.stack([part[key] for part in parts]) for key in parts[0]})


def write_scenes(
    people: Sequence[Person], encode: Encode, folder: Path, *,
    first: int, last: int, stride: int, seed: int, p_portrait: float = P_PORTRAIT,
) -> Iterator[int]:  # fmt: skip
    """Write files first, first + stride, … below last that are not there yet; yields their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, last, stride):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        scenes = make_scenes(SceneMaker(people, seed + number, p_portrait), encode, PER_FILE)
        with atomic_path(path) as part:
            save_file(scenes.state(), part)
        yield number


def load_scenes(folder: Path, start: int = 0) -> list[Scenes]:
    """The files of a folder from number start on, as far as there is no gap."""
    found: list[Scenes] = []
    while (path := folder / f"{start + len(found):05d}.safetensors").exists():
        found.append(Scenes(**load_file(path)))
    return found


def clip_chances(clips: Sequence[Person]) -> np.ndarray:
    """How often to draw each clip: by length, but a person with much footage less than in proportion (square root)."""
    frames = np.array([clip.train_frames for clip in clips], np.float64)
    people = {p: sum(c.train_frames for c in clips if c.identity == p) for p in {c.identity for c in clips}}
    weights = frames / np.sqrt([people[clip.identity] for clip in clips])
    return weights / weights.sum()

"""Puppets: a picture of a face says what a person in a clip says, so that the right answer is known.

The mesh of the clip's face, its head pose taken out, tells how lips, chin and jaw differ from the closed mouth. That
movement, brought to the other face's pose and to the width of its mouth, moves its mesh, which carries the skin along;
what shows between the lips is that of `inside`, or a frame of a speaker whose mouth has the same shape, its color
matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import cv2
import numpy as np

from latentsync.face.align import face_size

from . import mesh as geometry
from .data import MARGIN, RESOLUTION, Person, face_to_crop
from .inside import closed_frame, in_picture, mouth_inside, skin_color, teeth_of

SHARP_SPEAKERS = ("latentsync_demo", "obama_", "reagan_")
"""Clips whose mouths are large enough to be shown in other faces."""
TEETH = "london-100"
"""Whose teeth are shown by whoever does not show their own."""
STRONG = 0.32
"""Opening over width of the mouth that a speaker's widest vowels (its 95th percentile) are brought to, within GAIN."""
GAIN = (0.8, 1.35)
TEETH_SATURATION = 0.55
TEETH_TINT = 0.4
P_LIPSTICK = 0.4
LIPSTICK = (0.8, 0.4, 0.5), (1.15, 0.85, 0.95)
"""The color of lips over what it is without, red, green and blue: the least and the most."""
RAISED = 0.04
"""Of the width of the mouth: by how much others' teeth are moved up, since a smile's lip hides their edges."""


@dataclass(frozen=True)
class Speech:
    """A moment of speech: frame `frame` of the clip of people[person]; person SILENT is silence, NATURAL the picture
    as it was taken, which says nothing."""

    person: int
    frame: int = 0

    SILENT: ClassVar[int] = -2
    NATURAL: ClassVar[int] = -1


class Speakers:
    """The people who speak: how they move, and what their mouths look like inside. held_out: of their last quarter."""

    def __init__(self, people: Sequence[Person], *, held_out: bool = False) -> None:
        self.people = people
        self._shapes_of: dict[int, np.ndarray] = {}
        self.frames = {
            i: range(p.train_frames, len(p.crops)) if held_out else range(p.train_frames)
            for i, p in enumerate(people)
            if p.speaks
        }
        self.sharp = [i for i in self.frames if people[i].name.startswith(SHARP_SPEAKERS)]
        smiles = [p for p in people if p.name == TEETH] or people
        self.teeth = next((t for p in smiles for f in range(len(p.crops)) if (t := teeth_of(p, f))), None)

    def movement(self, speech: Speech) -> np.ndarray:
        """(468, 3) in units of the mouth's width at rest."""
        person = self.people[speech.person]
        return person.movement[speech.frame] * (self._gain(speech.person) / geometry.mouth_width(person.rest))

    def _gain(self, person: int) -> float:
        openings = self._shapes(person)[:, 0]
        return float(np.clip(STRONG / max(1e-6, np.percentile(openings, 95)), *GAIN))

    def _shapes(self, person: int) -> np.ndarray:
        """(F, 2): opening and width of the inner mouth, both over its width at rest."""
        if person not in self._shapes_of:
            who = self.people[person]
            posed = who.movement[list(self.frames[person])] + who.rest
            widths = geometry.mouth_width(posed)
            shapes = np.stack([geometry.opening(posed) * widths, widths], 1)
            self._shapes_of[person] = shapes / geometry.mouth_width(who.rest)
        return self._shapes_of[person]

    def like(self, speaker: int, opening: float, width: float) -> Speech:
        """The moment at which a speaker's mouth is most like this one, see _shapes."""
        distance = np.abs(self._shapes(speaker) - (opening, width)) @ (1.0, 0.5)
        return Speech(speaker, self.frames[speaker][int(distance.argmin())])


@dataclass(frozen=True)
class Look:
    """What is changed in all pictures of a scene alike. matrix: (2, 3) from the wide crop to a picture of side × side.
    gain (3, 3) and offset (3,) of colors in [-1, 1]; light: (side, side, 1) factor; lips: (3,) factor, of lipstick."""

    matrix: np.ndarray
    side: int = RESOLUTION
    gain: np.ndarray = field(default_factory=lambda: np.eye(3, dtype=np.float32))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))
    light: np.ndarray = field(default_factory=lambda: np.ones((1, 1, 1), np.float32))
    lips: np.ndarray = field(default_factory=lambda: np.ones(3, np.float32))
    quality: int = 100
    blur: float = 1.0
    noise: float = 0.0

    def colored(self, picture: np.ndarray) -> np.ndarray:
        """(R, R, 3) float32 in 0..255 to uint8."""
        pixels = (picture * self.light / 127.5 - 1) @ self.gain + self.offset
        return np.clip(pixels * 127.5 + 127.5, 0, 255).round().astype(np.uint8)

    def painted(self, crop: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The wide crop with lipstick. points: (468, 2) pixels."""
        if (self.lips == 1).all():
            return crop
        mask = geometry.lips_mask(points, len(crop))
        return np.clip(crop * (1 + mask * (self.lips - 1)), 0, 255).round().astype(np.uint8)

    def taken(self, crop: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The wide crop as a worse camera would have taken it."""
        if self.blur > 1:
            small = cv2.resize(crop, None, fx=1 / self.blur, fy=1 / self.blur, interpolation=cv2.INTER_AREA)
            crop = cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        if self.noise:
            grain = random.normal(0, self.noise, crop.shape[:2])[..., None]
            crop = np.clip(crop + grain, 0, 255).astype(np.uint8)
        if self.quality < 100:
            _, packed = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            crop = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
        return crop


def plain_look() -> Look:
    margin = RESOLUTION // MARGIN
    return Look(np.array([[1, 0, -margin], [0, 1, -margin]], np.float64))


def upright_look(side: int = 360) -> Look:
    """A square picture of the whole crop in its natural proportions, for a run of the whole pipeline."""
    width, height = face_size(RESOLUTION)
    zoom = side / (RESOLUTION * (1 + 2 / MARGIN)) * RESOLUTION / height
    matrix = np.diag([width / RESOLUTION * zoom, height / RESOLUTION * zoom])
    center = RESOLUTION * (1 + 2 / MARGIN) / 2
    return Look(np.c_[matrix, side / 2 - matrix @ (center, center)], side)


def random_look(random: np.random.Generator) -> Look:
    """Flip, turn (±4°), scale (±5 %), shift (±2 %), color, light from a side; sometimes lipstick, from pink to dark
    red, or a worse camera."""
    margin, center = RESOLUTION // MARGIN, RESOLUTION / 2
    angle, scale = np.deg2rad(random.uniform(-4, 4)), random.uniform(0.95, 1.05)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if random.random() < 0.5:
        turn = np.diag([-1.0, 1.0]) @ turn
    middle = np.full(2, margin + center - 0.5)
    shift = (center - 0.5) + random.uniform(-0.02, 0.02, 2) * RESOLUTION - turn @ middle
    saturation = random.uniform(0.7, 1.2)
    mixed = saturation * np.eye(3) + (1 - saturation) / 3
    gain = (mixed * random.uniform(0.75, 1.15) * random.uniform(0.93, 1.07, 3)).astype(np.float32)
    offset = (random.uniform(-0.2, 0.12) + random.uniform(-0.03, 0.03, 3)).astype(np.float32)
    return Look(
        np.concatenate([turn, shift[:, None]], 1),
        gain=gain,
        offset=offset,
        light=_side_light(random),
        lips=random.uniform(*LIPSTICK).astype(np.float32) if random.random() < P_LIPSTICK else np.ones(3, np.float32),
        quality=int(random.integers(60, 96)) if random.random() < 0.4 else 100,
        blur=random.uniform(1, 1.6) if random.random() < 0.25 else 1.0,
        noise=random.uniform(1, 5) if random.random() < 0.3 else 0.0,
    )


def _side_light(random: np.random.Generator) -> np.ndarray:
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.25)
    rows, columns = np.mgrid[-1 : 1 : RESOLUTION * 1j, -1 : 1 : RESOLUTION * 1j]
    return (1 + strength * (np.cos(angle) * columns + np.sin(angle) * rows))[..., None].astype(np.float32)


class Puppet:
    """One picture of a person, with one look, that can say anything."""

    def __init__(
        self,
        person: Person,
        frame: int,
        speakers: Speakers,
        inside: int | None,
        look: Look,
        random: np.random.Generator,
    ) -> None:
        """inside: the speaker whose mouth is shown between the lips, or None for the picture's own teeth."""
        self.person, self.frame, self.speakers, self.inside, self.look = person, frame, speakers, inside, look
        self.mesh = person.mesh[frame].astype(np.float64)
        self.to_wide = face_to_crop(RESOLUTION)
        points = in_picture(self.mesh, self.to_wide)
        self.crop = look.taken(look.painted(person.crops[frame], points), random)
        neutral = person.closed(frame)
        self.weight = geometry.movement_weight(self.mesh)
        self.closed = self.mesh + (neutral - self.mesh) * self.weight
        self.to_crop = look.matrix @ np.concatenate([self.to_wide, [[0, 0, 1]]])
        self.still = self._in_crop(self.mesh)
        self.skin = skin_color(self.crop, points)

    @cached_property
    def teeth(self) -> tuple[np.ndarray, np.ndarray]:
        """Those that the picture shows, else others in its light; they stay where they are, see Teeth.shown."""
        own = teeth_of(self.person, self.frame, self.crop)
        teeth = own or self.speakers.teeth
        if teeth is None:
            raise ValueError("nobody's teeth are known: no still smiles")
        frame = closed_frame(self.closed)
        if own is None:
            frame = frame - (frame[2] - frame[:2].mean(0)) * RAISED
        crop, mask = teeth.shown(self._in_crop(frame), self.look.side)
        return (crop if own else crop * _light(teeth.skin, self.skin, TEETH_TINT)), mask

    def _turn_from_speaker(self, rest: np.ndarray) -> np.ndarray:
        """(3, 3) rotation from the pose in which a speaker rests to this face's."""
        turn = geometry.pose(rest, self.closed).turn
        return turn / np.cbrt(np.linalg.det(turn))

    def _in_crop(self, mesh: np.ndarray) -> np.ndarray:
        return in_picture(mesh, self.to_crop)

    def natural(self) -> np.ndarray:
        """(R, R, 3) uint8: the picture as it was taken."""
        shown = cv2.warpAffine(
            self.crop, self.look.matrix, (self.look.side,) * 2, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        return self.look.colored(shown.astype(np.float32))

    def opening(self, speech: Speech) -> float:
        """Opening over the mouth's width at rest."""
        return self._shape(self._moved(speech))[0]

    def _moved(self, speech: Speech) -> np.ndarray:
        if speech.person == Speech.SILENT:
            return self.closed
        if speech.person == Speech.NATURAL:
            return self.mesh
        speaker = self.speakers.people[speech.person]
        movement = self.speakers.movement(speech) @ self._turn_from_speaker(speaker.rest).T
        return self.closed + movement * geometry.mouth_width(self.closed) * self.weight

    def _shape(self, mesh: np.ndarray) -> tuple[float, float]:
        width = geometry.mouth_width(self.closed)
        gap = np.linalg.norm(mesh[geometry.UPPER] - mesh[geometry.LOWER])
        return float(gap / width), float(geometry.mouth_width(mesh) / width)

    def says(self, speech: Speech) -> np.ndarray:
        """(R, R, 3) uint8: the face at that moment of that speech."""
        if speech.person == Speech.NATURAL:
            return self.natural()
        moved = self._moved(speech)
        target = self._in_crop(moved)
        source = in_picture(self.mesh, self.to_wide)
        maps = geometry.warp_maps(
            source, target, self.still, cv2.invertAffineTransform(self.look.matrix), self.look.side
        )
        picture = cv2.remap(self.crop, maps[0], maps[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        opening, width = self._shape(moved)
        if opening > 0.03:
            alpha = geometry.inner_mask(target, self.look.side)
            if self.inside is None:
                inside = mouth_inside(target, opening, self.skin, *self.teeth)
            else:
                inside = self._of_speaker(target, self.speakers.like(self.inside, opening, width))
            picture = picture * (1 - alpha) + inside * alpha
        return self.look.colored(picture.astype(np.float32))

    def _of_speaker(self, target: np.ndarray, shown: Speech) -> np.ndarray:
        """(side, side, 3): what a speaker's mouth shows between its lips, brought to these."""
        speaker = self.speakers.people[shown.person]
        points = in_picture(speaker.mesh[shown.frame], self.to_wide)
        matrix = cv2.getAffineTransform(_mouth_frame(points), _mouth_frame(target))
        crop = speaker.crops[shown.frame]
        size = (self.look.side,) * 2
        inside = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return _toned(inside.astype(np.float32), skin_color(crop, points), self.skin)


def _mouth_frame(points: np.ndarray) -> np.ndarray:
    """Both corners and the middle of the lower lip, which a mouth has however little it is open."""
    upper, lower = points[geometry.UPPER], points[geometry.LOWER]
    half = max(2.0, float(np.linalg.norm(upper - lower)) / 2)
    return np.stack([points[geometry.LEFT], points[geometry.RIGHT], (upper + lower) / 2 + (0, half)]).astype(np.float32)


def _light(theirs: np.ndarray, ours: np.ndarray, tint: float = 1.0) -> np.ndarray:
    """(3,) factor from the light on one face to that on another: as bright as its skin lets expect, but no more than by
    a third."""
    light = np.clip(np.sqrt(ours.mean() / theirs.mean()), 0.65, 1.3)
    tinted = np.clip((ours / ours.mean()) / (theirs / theirs.mean()), 0.85, 1.15) ** tint
    return (light * tinted).astype(np.float32)


def _toned(inside: np.ndarray, theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """The inside of a mouth in another face's light, and teeth (what is bright) no more colored than teeth are."""
    inside = inside * _light(theirs, ours)
    gray = inside.mean(-1, keepdims=True)
    bright = np.clip((gray / ours.mean() - 0.35) / 0.25, 0, 1)
    return gray + (inside - gray) * (1 - (1 - TEETH_SATURATION) * bright)

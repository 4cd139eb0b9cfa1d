"""Things drawn over aligned faces: hands, cups, microphones, pens, cloth and shapes of any texture, with their masks.

Sizes are in pixels of a crop of INNER pixels with a margin, SIDE in all. None of them was fitted to a picture: what is
drawn need not be believed, it must differ as much as covers do. Some two thirds of the samples have a cover.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

INNER, MARGIN = 128, 16
SIDE = INNER + 2 * MARGIN
MOUTH = (80.0, 112.0)
"""x, y of the lips in nearly every crop."""
P_COVER, P_SECOND = 0.62, 0.12
P_REAL = 0.45
"""Chance of a face as it was taken; the others are puppets, whose mouths are in other states."""
YY, XX = np.mgrid[:SIDE, :SIDE].astype(np.float32)


@dataclass(frozen=True)
class Faces:
    """pictures: (N, SIDE, SIDE, 3) uint8, the first R as they were taken, the others puppets. outlines: (R, SIDE, SIDE)
    uint8, 255 within those faces."""

    pictures: np.ndarray
    outlines: np.ndarray


@dataclass
class Canvas:
    """A picture (SIDE, SIDE, 3) float32 in 0..255, and how much of each pixel is covered (SIDE, SIDE)."""

    picture: np.ndarray
    faces: Faces
    random: np.random.Generator

    def __post_init__(self) -> None:
        self.face = self.picture.clip(0, 255)
        self.covered = np.zeros((SIDE, SIDE), np.float32)

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def lay(self, alpha: np.ndarray, pixels: np.ndarray, shadow: bool = True) -> None:
        """Something over the picture; often it throws a soft shadow first."""
        if shadow and self.chance(0.6):
            move = np.array([[1, 0, self.between(-5, 5)], [0, 1, self.between(-5, 5)]])
            soft = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (SIDE, SIDE)), (0, 0), self.between(2, 9))
            self.picture *= 1 - (soft * self.between(0.1, 0.6))[..., None]
        self.picture += alpha[..., None] * (pixels - self.picture)
        self.covered = np.maximum(self.covered, alpha)

    # ---- places ------------------------------------------------------------------------------------------------------

    def place(self, spread: float = 20.0) -> np.ndarray:
        """A point, mostly at the mouth."""
        return self.random.normal(MOUTH, (1.1 * spread, 0.9 * spread))

    def direction(self) -> np.ndarray:
        """From a thing's tip to where it comes from: mostly below, or a side, seldom above."""
        kind = self.random.random()
        angle = self.between(0.15, 0.85) * np.pi
        if kind > 0.93:
            angle = self.between(-np.pi, 0)
        elif kind > 0.6:
            angle = self.between(-0.15, 0.15) + np.pi * self.chance(0.5)
        return np.array([np.cos(angle), np.sin(angle)])

    # ---- colors and textures -----------------------------------------------------------------------------------------

    def color(self) -> np.ndarray:
        kind = self.random.random()
        if kind < 0.3:
            return self.between(3, 70) + self.random.normal(0, 4, 3)
        return self.between(70, 250) + self.random.normal(0, 6, 3) if kind < 0.55 else self.random.uniform(10, 245, 3)

    def skin(self) -> np.ndarray:
        """Of the face's cheeks, lit otherwise."""
        rows = self.random.integers(70, 100, 40)
        columns = np.where(self.random.random(40) < 0.5, *self.random.integers([[35], [100]], [[60], [125]], (2, 40)))
        shade = np.median(self.face[rows, columns], 0)
        return shade * self.between(0.65, 1.3) + self.random.normal(0, 5, 3)

    def noise(self, cell: float, strength: float) -> np.ndarray:
        """(SIDE, SIDE, 1 or 3): blobs of about `cell` pixels."""
        count = max(2, int(SIDE / cell))
        cells = self.random.normal(0, strength, (count, count, 3 if self.chance(0.3) else 1)).astype(np.float32)
        return cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).reshape(SIDE, SIDE, -1)

    def slope(self, strength: float) -> np.ndarray:
        """(SIDE, SIDE, 1): from -strength to strength across the picture in some direction."""
        angle = self.between(0, 2 * np.pi)
        return (((XX - 80) * np.cos(angle) + (YY - 80) * np.sin(angle)) / 80 * strength)[..., None]

    def texture(self, base: np.ndarray) -> np.ndarray:
        """Around this color: grain, stains, stripes, light from a side; or a part of any picture."""
        random = self.random
        if self.chance(0.35):
            size = int(SIDE * self.between(0.25, 1))
            top, left = random.integers(0, SIDE - size + 1, 2)
            other = self.faces.pictures[random.integers(len(self.faces.pictures))]
            part = other[top : top + size, left : left + size]
            pixels = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
            pixels = pixels[::-1] if self.chance(0.5) else pixels
            return pixels - pixels.mean((0, 1)) + base if self.chance(0.5) else pixels
        pixels = np.full((SIDE, SIDE, 3), base, np.float32)
        if self.chance(0.6):
            pixels += self.noise(self.between(1, 4), self.between(1, 14))
        if self.chance(0.6):
            pixels += self.noise(self.between(15, 60), self.between(3, 25))
        if self.chance(0.25):
            angle, pace = self.between(0, np.pi), self.between(0.1, 1.2)
            wave = np.sin((XX * np.cos(angle) + YY * np.sin(angle)) * pace + self.between(0, 6))
            pixels += (np.sign(wave) * self.between(5, 50))[..., None] * random.uniform(0.5, 1, 3)
        if self.chance(0.5):
            pixels += self.slope(self.between(8, 56))
        return pixels

    def skin_texture(self, base: np.ndarray) -> np.ndarray:
        pixels = np.full((SIDE, SIDE, 3), base, np.float32)
        pixels += self.noise(self.between(1.5, 5), self.between(0, 4))
        pixels += self.noise(self.between(10, 40), self.between(2, 10))
        pixels *= 1 + self.slope(self.between(0, 0.3))
        pixels[..., :1] += self.noise(self.between(12, 40), self.between(0, 8))[..., :1]
        return pixels

    def rounded(self, depth: np.ndarray, most: float) -> np.ndarray:
        """(SIDE, SIDE, 1): darker towards the edge, where the depth is 0."""
        return (1 - (1 - depth.clip(0, 1)) ** 2 * self.between(0, most))[..., None]


def capsule(start: np.ndarray, stop: np.ndarray, width: float, width_at_stop: float) -> np.ndarray:
    """(SIDE, SIDE): 1 on the line, 0 at the edge, less than 0 outside."""
    line = stop - start
    along = (((XX - start[0]) * line[0] + (YY - start[1]) * line[1]) / (line @ line + 1e-6)).clip(0, 1)
    away = np.hypot(XX - start[0] - along * line[0], YY - start[1] - along * line[1])
    return (1 - away / (width + (width_at_stop - width) * along)).astype(np.float32)


def edged(depth: np.ndarray, width: float) -> np.ndarray:
    """Alpha of a capsule of this width, its edge one pixel wide."""
    return (depth * width + 0.5).clip(0, 1)


def polygon(points: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) float32 in 0..1."""
    filled = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(filled, [np.rint(points * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
    return filled.astype(np.float32) / 255


def oval(center: np.ndarray, width: float, height: float, degrees: float) -> np.ndarray:
    """(SIDE, SIDE) float32 in 0..1."""
    filled = np.zeros((SIDE, SIDE), np.uint8)
    x, y = center.astype(int).tolist()
    cv2.ellipse(filled, (x, y), (int(width), max(1, int(height))), degrees, 0, 360, 255, -1, cv2.LINE_AA)
    return filled.astype(np.float32) / 255


# ---- kinds of covers -------------------------------------------------------------------------------------------------


def hand(canvas: Canvas) -> None:
    """One to five fingers, mostly on a palm, sometimes in a glove."""
    random, between, gloved = canvas.random, canvas.between, canvas.chance(0.08)
    shade = canvas.color() if gloved else canvas.skin()
    whole = canvas.texture(shade) if gloved else canvas.skin_texture(shade)
    aim, towards = canvas.place(), canvas.direction()
    across = np.array([-towards[1], towards[0]])
    width, count, base = between(5, 12), int(random.integers(1, 6)), aim + towards * between(35, 75)
    gap, fan = width * between(1.6, 2.2), between(-0.12, 0.12)
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    if count > 1 and canvas.chance(0.85):
        palm = gap * count / 2 * between(0.9, 1.25)
        depth = capsule(base + towards * palm * 0.6, base + towards * 130, palm, palm * between(0.7, 1.1))
        layers.append((edged(depth, palm), whole * canvas.rounded(depth, 0.35)))
    for finger in sorted(range(count), reverse=canvas.chance(0.5)):
        off = finger - (count - 1) / 2
        tip = aim + across * gap * off * (1 + fan) + towards * (between(-8, 8) + abs(off) * between(0, 6))
        root = base + across * gap * off + towards * (150 if count == 1 else between(0, 8))
        layers.append(_finger(canvas, tip, root, width * between(0.85, 1.1), whole, None if gloved else shade))
    canvas.lay(np.max([alpha for alpha, _ in layers], 0), canvas.picture)  # the shadow of all of them
    drawn = np.zeros((SIDE, SIDE), bool)
    for alpha, pixels in layers:  # and that of each on those before it
        canvas.picture *= 1 - (cv2.GaussianBlur(alpha, (0, 0), 1.5) * between(0, 0.3) * drawn)[..., None]
        canvas.lay(alpha, pixels, shadow=False)
        drawn |= alpha > 0


def _finger(
    canvas: Canvas, tip: np.ndarray, root: np.ndarray, width: float, whole: np.ndarray, nail: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and pixels. nail: the skin's color, None for no nail."""
    between, towards = canvas.between, (root - tip) / (np.linalg.norm(root - tip) + 1e-6)
    across = np.array([-towards[1], towards[0]])
    middle = (tip + root) / 2 + across * (between(-7, 7) if canvas.chance(0.35) else 0)  # bent at the knuckle
    depth = np.maximum(capsule(tip, middle, 0.85 * width, width), capsule(middle, root, width, width))
    side = ((XX - tip[0]) * across[0] + (YY - tip[1]) * across[1]) / width
    light = canvas.rounded(depth, 0.5) + (side.clip(-1, 1) * between(-0.18, 0.18))[..., None]
    pixels = whole * between(0.92, 1.08) * light
    down = (XX - tip[0]) * towards[0] + (YY - tip[1]) * towards[1]
    if nail is not None and canvas.chance(0.5):
        round_ = np.hypot((down - 0.1 * width) / (0.75 * width), side / 0.5)
        color = nail * between(1, 1.25) + (12, 0, 5) if canvas.chance(0.7) else canvas.color()
        pixels += ((1 - round_) * width * 0.5).clip(0, 1)[..., None] * (color - pixels) * between(0.3, 1)
    if canvas.chance(0.6):
        for at in canvas.random.uniform(0.2, 0.9, 2) * np.linalg.norm(middle - tip):
            pixels *= (1 - 0.25 * np.exp(-(((down - at) / 1.2) ** 2)))[..., None]
    return edged(depth, width), pixels


def shape(canvas: Canvas, radius: float | None = None, pixels: np.ndarray | None = None) -> None:
    """A blob of any size and texture."""
    random, between, center = canvas.random, canvas.between, canvas.place()
    radius = radius or float(np.exp(between(np.log(6), np.log(55))))
    count = int(random.integers(5, 12))
    angles, radii = np.sort(random.uniform(0, 2 * np.pi, count)), radius * random.uniform(0.6, 1.25, count)
    corners = np.stack([np.cos(angles) * radii * between(0.6, 1.6), np.sin(angles) * radii], 1) + center
    blur = between(0.5, 6)
    alpha = ((cv2.GaussianBlur(polygon(corners), (0, 0), blur) - 0.5) * blur * 2.2 + 0.5).clip(0, 1)
    depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3) / max(1, 0.6 * radius)
    if pixels is None:
        pixels = canvas.texture(canvas.skin() if canvas.chance(0.25) else canvas.color())
    canvas.lay(alpha, pixels * canvas.rounded(depth, 0.5))


def fist(canvas: Canvas) -> None:
    """A blob of skin with lines between fingers."""
    pixels = canvas.skin_texture(canvas.skin())
    for _ in range(canvas.random.integers(0, 6)):
        start = canvas.place()
        line = capsule(start, start + canvas.random.normal(0, 22, 2), canvas.between(1, 3), canvas.between(0.8, 2))
        pixels *= (1 - canvas.between(0.15, 0.5) * line.clip(0, 1))[..., None]
    shape(canvas, canvas.between(16, 48), pixels)


def microphone(canvas: Canvas) -> None:
    """A dark, colored or foam head, mostly on a stem."""
    between, center, towards, radius = canvas.between, canvas.place(), canvas.direction(), canvas.between(7, 26)
    depth = capsule(center, center + towards * radius * between(0.1, 0.8), radius, radius * between(0.7, 1))
    base = canvas.color() if canvas.chance(0.4) else np.full(3, between(8, 120))
    pixels = np.full((SIDE, SIDE, 3), base, np.float32)
    if canvas.chance(0.6):  # a grille
        angle, pace = between(0, np.pi), between(0.8, 2.5)
        along, across = XX * np.cos(angle) + YY * np.sin(angle), YY * np.cos(angle) - XX * np.sin(angle)
        pixels += (np.sin(along * pace) * np.sin(across * pace) * between(5, 40))[..., None]
    pixels += canvas.noise(between(1, 3), between(1, 12))
    x, y = center + canvas.random.normal(0, 0.4 * radius, 2)
    pixels += (np.exp(-((XX - x) ** 2 + (YY - y) ** 2) / (0.2 * radius**2)) * between(0, 70))[..., None]
    if canvas.chance(0.85):
        width = radius * between(0.25, 0.8)
        stem = capsule(center + towards * 0.9 * radius, center + towards * 200, width, 0.9 * width)
        canvas.lay(edged(stem, width), canvas.color() * canvas.rounded(stem, 0.6))
    canvas.lay(edged(depth, radius), pixels * canvas.rounded(depth, 0.6))


def cup(canvas: Canvas) -> None:
    """A cup, glass or can, often with its rim to be seen."""
    between, center, width, angle = canvas.between, canvas.place(), canvas.between(14, 38), canvas.between(-0.5, 0.5)
    height, foot, degrees = width * between(1, 2.6), width * between(0.65, 1.05), float(np.degrees(angle))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    body = polygon(np.array([(-width, 0), (width, 0), (foot, height), (-foot, height)]) @ turn + center)
    alpha = np.maximum(body, oval(center, width, width * between(0.1, 0.35), degrees))
    base = between(150, 250) + canvas.random.normal(0, 6, 3) if canvas.chance(0.6) else canvas.color()
    side = (((XX - center[0]) * np.cos(angle) + (YY - center[1]) * np.sin(angle)) / width).clip(-1, 1)
    light = 1 - side**2 * between(0, 0.5) + side * between(-0.3, 0.3)
    canvas.lay(alpha, canvas.texture(base) * light[..., None])
    if canvas.chance(0.5):
        rim = oval(center, width, width * between(0.1, 0.3), degrees)
        canvas.lay(rim, np.full((SIDE, SIDE, 3), base * between(0.4, 1.1)), shadow=False)


def stick(canvas: Canvas) -> None:
    """A pen, a straw, a fork, a spoon; often a hand holds it."""
    between, tip, towards, width = canvas.between, canvas.place(12), canvas.direction(), canvas.between(1.5, 6)
    depth = capsule(tip, tip + towards * 200, width, width * between(0.8, 1.5))
    pixels = canvas.texture(canvas.color()) * canvas.rounded(depth, 0.5)
    canvas.lay(edged(depth, width), pixels)
    across, gap = np.array([-towards[1], towards[0]]), between(2, 5)
    if canvas.chance(0.3):
        for prong in range(int(canvas.random.integers(2, 5))):
            root, thin = tip + across * gap * (prong - 1.5), 0.35 * width + 0.6
            canvas.lay(edged(capsule(root, root - towards * between(8, 16), thin, thin), thin), pixels, shadow=False)
    if canvas.chance(0.4):  # food, a bowl, a cap
        radius = between(5, 14)
        canvas.lay(edged(capsule(tip, tip + 1, radius, radius), radius), canvas.texture(canvas.color()), shadow=False)
    if canvas.chance(0.4):
        hand(canvas)


def cloth(canvas: Canvas) -> None:
    """A scarf or a mask: all below a line."""
    wrinkles = canvas.random.normal(0, canvas.between(0, 3), (1, 12)).astype(np.float32)
    line = canvas.between(80, 140) + (XX - 80) * canvas.between(-0.25, 0.25)
    line += canvas.between(-18, 18) * ((XX - 80) / 60) ** 2
    line += cv2.resize(wrinkles, (SIDE, 1), interpolation=cv2.INTER_CUBIC)
    canvas.lay((YY - line + 0.5).clip(0, 1), canvas.texture(canvas.color()))


KINDS: dict[Callable[[Canvas], None], float] = {
    hand: 0.3, fist: 0.08, shape: 0.12, microphone: 0.12, cup: 0.1, stick: 0.22, cloth: 0.06,
}  # fmt: skip
"""How often each is drawn."""


# ---- what is no cover ------------------------------------------------------------------------------------------------


def beard(canvas: Canvas) -> None:
    between = canvas.between
    area = np.exp(-((((XX - 80) / between(30, 48)) ** 2) ** 2)) / (1 + np.exp((between(96, 112) - YY) / 4))
    lips = np.exp(-(((XX - 80) / between(17, 22)) ** 4) - ((YY - 114) / between(6, 9)) ** 4) * between(0.8, 1)
    thick = area * (1 - lips) * between(0.2, 0.9) * (1 + 0.3 * canvas.noise(2, 1)[..., 0]).clip(0.3, 1.4)
    shade = canvas.random.choice([20, 45, 90, 150]) * between(0.6, 1.2) * np.array([1.1, 1, 0.9])
    pixels = shade + canvas.noise(between(1, 2.5), between(8, 30))
    canvas.picture += thick.clip(0, 1)[..., None] * (pixels - canvas.picture)


def background(canvas: Canvas, outline: np.ndarray) -> None:
    """Another one around the face, sometimes with a collar's edge below the chin."""
    face = cv2.GaussianBlur(outline.astype(np.float32) / 255, (0, 0), 1)
    if canvas.chance(0.55):
        neck = (np.abs(XX - 80) < canvas.between(20, 50)) & (YY > 135) & (canvas.between(136, 160) > YY)
        face = np.maximum(face, neck)
    canvas.picture = canvas.texture(canvas.color()) * (1 - face[..., None]) + canvas.picture * face[..., None]


def light(canvas: Canvas) -> None:
    """Light from a side, its color, contrast, saturation."""
    if canvas.chance(0.5):
        canvas.picture *= 1 + canvas.slope(canvas.between(0, 0.35))
    picture = canvas.picture * canvas.random.normal(1, 0.08, 3)
    picture = (picture - 128) * np.exp(canvas.random.normal(0, 0.18)) + 128 + canvas.random.normal(0, 12)
    gray, kind = picture.mean(2, keepdims=True), canvas.random.random()
    if kind < 0.35:
        picture = gray + (picture - gray) * (0 if kind < 0.08 else canvas.between(0.3, 1.4))
    canvas.picture = picture.astype(np.float32)


def moved(canvas: Canvas) -> None:
    """Landmarks are not exact: shifted, turned and scaled a little; a head's turn; a jaw further down."""
    random, between = canvas.random, canvas.between
    center = ((SIDE - 1) / 2, (SIDE - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, random.normal(0, 4.5), float(np.exp(random.normal(0, 0.06))))
    matrix[:, 2] += random.normal(0, 3.2, 2)
    (a, b, c), (d, e, f) = cv2.invertAffineTransform(matrix)
    x, y = a * XX + b * YY + c, d * XX + e * YY + f
    if canvas.chance(0.4):
        bulge = (1 - ((x - 80) / 64).clip(-1.2, 1.2) ** 2).clip(0, 1) * (0.5 + 0.5 * np.exp(-(((y - 95) / 45) ** 2)))
        x = 80 + (x + random.normal(0, 18) * bulge - 80) * between(0.9, 1.15)
    if canvas.chance(0.3):
        y = y + random.normal(0, 5) * np.exp(-(((y - 118) / 18) ** 2))
    at = x.astype(np.float32), y.astype(np.float32)
    canvas.picture = cv2.remap(canvas.picture, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    canvas.covered = cv2.remap(canvas.covered, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def motion(canvas: Canvas) -> None:
    """The cover is blurred by its own movement."""
    length = int(canvas.random.integers(3, 12))
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length / 2 - 0.5, length / 2 - 0.5), canvas.between(0, 180), 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    kernel /= kernel.sum()
    covered = cv2.filter2D(canvas.covered, -1, kernel)
    canvas.picture = np.where(covered[..., None] > 0.02, cv2.filter2D(canvas.picture, -1, kernel), canvas.picture)
    canvas.covered = covered


def draw(random: np.random.Generator, faces: Faces) -> Canvas:
    """A face, with or without something over it, in some light."""
    real = len(faces.outlines)
    puppets = len(faces.pictures) - real
    chosen = real + int(random.integers(puppets)) if puppets and random.random() >= P_REAL else random.integers(real)
    canvas = Canvas(faces.pictures[chosen].astype(np.float32), faces, random)
    if chosen < real and canvas.chance(0.35):
        background(canvas, faces.outlines[chosen])
    exposure = random.random()
    if exposure < 0.25:
        canvas.picture *= canvas.between(0.3, 1.15) ** canvas.between(0.5, 1)
    elif exposure < 0.5:
        canvas.picture = 255 * (canvas.picture.clip(0, 255) / 255) ** np.float32(np.exp(random.normal(0, 0.4)))
    if canvas.chance(0.2):
        beard(canvas)
    if canvas.chance(0.15):  # the shadow of a moustache
        line = np.exp(-(((YY - 105) / 3) ** 2) - ((XX - 80) / 16) ** 4)
        canvas.picture *= (1 - 0.5 * random.random() * line)[..., None]
    canvas.face = canvas.picture.clip(0, 255)
    if canvas.chance(P_COVER):
        kinds, chances = [*KINDS], np.array([*KINDS.values()])
        for _ in range(1 + canvas.chance(P_SECOND)):
            kinds[int(random.choice(len(kinds), p=chances / chances.sum()))](canvas)
            canvas.picture = canvas.picture.astype(np.float32)
        if canvas.chance(0.15):
            motion(canvas)
    light(canvas)
    moved(canvas)
    return canvas


def sample(random: np.random.Generator, faces: Faces, side: int) -> tuple[np.ndarray, np.ndarray]:
    """What the network learns from: a crop (side, side, 3) uint8 RGB, as a camera and a codec leave it, and how much of
    each pixel is covered, (side, side) uint8."""
    canvas = draw(random, faces)
    picture, inner = canvas.picture, slice(MARGIN, MARGIN + INNER)
    if canvas.chance(0.4):
        picture = cv2.GaussianBlur(picture, (0, 0), np.exp(canvas.between(np.log(0.5), np.log(3))))
    picture = cv2.resize(picture[inner, inner], (side, side), interpolation=cv2.INTER_AREA)
    covered = cv2.resize(canvas.covered[inner, inner], (side, side), interpolation=cv2.INTER_AREA)
    if canvas.chance(0.5):
        picture = picture + random.normal(0, canvas.between(0, 6), picture.shape)
    pixels, mask = picture.clip(0, 255).astype(np.uint8), (covered.clip(0, 1) * 255).astype(np.uint8)
    if canvas.chance(0.4):
        coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 90))])[1]
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    if canvas.chance(0.12):  # the frame ends here: that is no cover
        beyond, where = int(random.integers(1, 3 * side // 8)), random.random()
        outside = np.s_[side - beyond :] if where < 0.6 else np.s_[:, :beyond] if where < 0.8 else np.s_[:, -beyond:]
        pixels[outside], mask[outside] = 127 if canvas.chance(0.7) else int(random.integers(0, 30)), 0
    return (pixels[:, ::-1], mask[:, ::-1]) if canvas.chance(0.5) else (pixels, mask)

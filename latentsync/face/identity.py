"""Who a face is: a vector of its looks, alike for one person whatever the pose, the mouth, the light and the size.

The 68 points are laid onto those of a mean face, so that neither pose nor expression moves a feature; then edges are
counted by place and direction, as a share of what is at that place, which takes away light and contrast. Of a face
that is turned the near half counts twice. Fitted on no more than means of people: see MEAN.
"""

from base64 import b85decode
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

SIDE = 64
CELLS, DIRECTIONS = 16, 8
COLOR_CELLS = 8
COLOR_WEIGHT = 0.5
LENGTH = CELLS * CELLS * DIRECTIONS + COLOR_CELLS * COLOR_CELLS * 2
PLAIN = 8
"""A face whose gray values, of 255, range over less than this is no picture of anybody."""
TURNED = 0.1
"""The nose's way off the middle, in widths of the jaw, from which the far half of a face is the near one mirrored."""
FLAT = 0.5
"""Where there are fewer edges than this share of the mean they count less: noise of smooth skin."""
STIFFNESS = 0.02
LEFT, TOP, RIGHT, BOTTOM = -1.05, -0.8, 1.05, 1.9
"""The part of the mean face that is looked at, in its units: temples, brows, chin."""
WORKING = 108
"""Pixels from brow to chin to which larger faces are reduced first, so that nothing aliases."""

# fmt: off
_RIGHT_HALF = {  # right as seen, x and y; 68-point number: 0 is between the eyes, 1 the distance of their centers
    8: (0.00, 1.84), 9: (0.21, 1.82), 10: (0.51, 1.69), 11: (0.79, 1.47), 12: (0.91, 1.31), 13: (1.01, 1.10),
    14: (1.12, 0.56), 15: (1.14, 0.31), 16: (1.13, -0.18), 22: (0.25, -0.37), 23: (0.48, -0.40), 24: (0.69, -0.41),
    25: (0.85, -0.36), 26: (1.01, -0.32), 27: (0.00, -0.08), 28: (0.00, 0.16), 29: (0.00, 0.37), 30: (0.00, 0.50),
    33: (0.00, 0.71), 34: (0.13, 0.71), 35: (0.20, 0.66), 42: (0.28, 0.01), 43: (0.45, -0.10), 44: (0.62, -0.09),
    45: (0.72, -0.01), 46: (0.60, 0.05), 47: (0.43, 0.04), 51: (0.00, 0.95), 52: (0.13, 0.93), 53: (0.25, 0.96),
    54: (0.43, 1.06), 55: (0.24, 1.21), 56: (0.13, 1.25), 57: (0.00, 1.26),
}
_MIRRORED = {8: 8, 9: 7, 10: 6, 11: 5, 12: 4, 13: 3, 14: 2, 15: 1, 16: 0, 22: 21, 23: 20, 24: 19, 25: 18, 26: 17,
             27: 27, 28: 28, 29: 29, 30: 30, 33: 33, 34: 32, 35: 31, 42: 39, 43: 38, 44: 37, 45: 36, 46: 41, 47: 40,
             51: 51, 52: 50, 53: 49, 54: 48, 55: 59, 56: 58, 57: 57}
# fmt: on
"""The mean of the neutral and smiling portraits of 126 people (Face Research Lab London, Young Adult White Faces)."""

MEAN = (
    "|M~Oi@AUWi0Q&Ra;QIXh0{!#Y)A#=V1^@Nf%kTXE`~3IZ%k291`TYCm&g}a12mk!><L>?e4FCN2{PFw+@9^>N_4V@b^7Hra<@)>f_xASl;r9Uk"
    "`TFzi>F@sl^!xYf=<fUa^#A<n-SPML{saB*-|zVV1pxc@{O$V;?DYNt`tt7U@cRxH`SI}X^!NuN4E6Q(^!NG}A@}q2@%H!&A_4L7@A&xs5)k$7"
    "_5b?!_Xz#<`2PC#{PX$&0t^N4>Fe|Q01+4c>GSsZ`TzzC0s;Q}{QLY98vp$M_x%0}9R~LG_4)bu3KjwO`ThFw?+gt6`2G6v@%8@u5EA|B=<M?V"
    "1PuxD<@f&n0R#*L^aTwE3<wAb2n`t;1P&Mv4G;(f0Rsm9{Tdqz0|o{5<NXW=_xk<x@9+Kn4FdA&=IQYL{rB?e;qm<f_w@Dg@&*F?`S|zv3latW"
    "_4@=15e4`3_4Wc23<Li7_xTGD^Y8Wf0Qvs?@#pgY2m0^j-{$lH{POJL+~)ZM1NZIY;p_4N@9gR4^!M%S=;`e8{q*YQ@b2;V_VMrW0Q>jx<>>MJ"
    "2?F))@aOIN{r?63_WA||0Q>y=^!Eh}4+Ht^;p_qz_Ve)P;OzSP?(g&M<?QtE`ThUz;pz1H00#i=<LveN1qS)-_3-rf`2!Xj2?hiE00a#f4h#na"
    "5)%vi>Gc8(`T6+n-}3|f@bmop>+bjS`Tqv|=<D(K{sRN}>+$va0RH;-`S<zz_xk?>`1tzv`1$()`2GC&`~3Lq>Hz=x^YHNM>H`M(@$dHd^7;Mt"
    "`St$$?D6#Z{`L9!?)Ulq0r2tp{`~#{`1ke)7W?-1`S|t#76<wH`S<tw6&M2j{`dCu`w|if`||Ph@B0J<_V4rd>+|>f`ttDi^!WSz0tEE>4*mW9"
    "{QLU`6af4C{{8+24F~}K{Qn6S3<UlB0tE~W_xS$-`S|ws>+kyi>+<yS=<xLR@Bsez_4)bu{1^rM4gLK3{QLU-0Qvj<{rvj-@Aduu{r&m%;_v(Z"
    "`TO?o<L&$X=koXP?C|&Z;`0Re?ez5V_X!dF^!)q!01F8F0RH{{`~CUy>-PQt{sH*v-1Y+n{sZ~w+VlVe^8Ebp=k@*l-tPha_4)es==cu=_WSzv"
    "2M7rM_y7O@1^V~;{Qdy{_x%0-{rUR)`T_+4^7Z@u_yGn7@%Q`v@c0G{_xbzz;qV3y{rmd#>-Yx;`~Lj*2Lbr|`vL(10QBwm0RI62|M~X-68QJ|"
    "0{r?12>1H?1pE63{Q3L*{q_F__4)ev>+b>u`1$zq^7i`r`2GC%3jOl(`2YU{|Mc(j|NZ{~{sH~~|Nj2|{s8^}{s8{}0RR31{sI5~0RaC1{{a90"
    "0RR910RR902Lu5C|Ni>{0095~{r~p@{s8>|{r~s_"
)
"""The mean of the features over 88 people, right half, rounded: edges in 1/100, colors in 1/50. They are those people
of the portraits (London, Canada), the GRID clips, the LatentSync demos and two presidents' addresses that
benchmarks/identity.py does not hold out."""
SAME, STEADY, RISE = 0.37, 0.75, 1.3
"""How alike two views are from which they are one person's, and how that rises by how much a person is like itself
above STEADY: what a codec makes smooth, or a light flat, makes everybody alike. Measured by python -m
benchmarks.identity."""
SPREAD = 3
"""Views, apart in time, from which it is known how much a person is like itself."""


@dataclass
class Looks:
    """What one face looked like over time. total: the sum of its views; count: how many they are."""

    total: np.ndarray
    count: int

    @classmethod
    def none(cls) -> "Looks":
        return cls(np.zeros(LENGTH, np.float32), 0)

    def add(self, view: np.ndarray) -> None:
        """Take in one more view, from embed; zeros say nothing and do not count."""
        if view.any():
            self.total, self.count = self.total + view, self.count + 1

    def joined(self, other: "Looks") -> "Looks":
        return Looks(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> np.ndarray:
        """(2176,) float32 of length 1, or zeros where there is no view."""
        return _unit(self.total)

    @property
    def limit(self) -> float:
        """How alike another view must be to be of the same person."""
        if self.count < SPREAD:
            return SAME
        own = (float(self.total @ self.total) / self.count - 1) / (self.count - 1)
        return SAME + RISE * max(0.0, own - STEADY)


def embed(frame: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """The looks of a face: (2176,) float32 of length 1; the product of two is their likeness, -1..1. Zeros where there
    is no picture to judge by.

    frame: (H, W, 3) uint8 RGB. points68: (68, 2) pixels of the frame.
    """
    face = _frontal(frame, points68)
    if np.ptp(face) < PLAIN:
        return np.zeros(LENGTH, np.float32)
    mean_edges, mean_colors = _mean_features()
    edges, colors = _edges(face) - mean_edges, _colors(face) - mean_colors
    return _unit(np.concatenate([_unit(edges.ravel()), COLOR_WEIGHT * _unit(colors.ravel())]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / (np.linalg.norm(vector) + 1e-6)).astype(np.float32)


def _frontal(frame: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """The face as if from the front, (SIDE, SIDE, 3) uint8, the mouth as in the mean face; frame's edge repeated."""
    (x0, y0), (x1, y1) = points68.min(0), points68.max(0)
    margin = 0.25 * max(x1 - x0, y1 - y0)
    height, width = frame.shape[:2]
    left, top = (int(np.clip(value - margin, 0, limit - 1)) for value, limit in ((x0, width), (y0, height)))
    right, bottom = int(np.clip(x1 + margin, left + 1, width)), int(np.clip(y1 + margin, top + 1, height))
    part, points = frame[top:bottom, left:right], points68 - (left, top)
    scale = min(1.0, WORKING / max(x1 - x0, y1 - y0, 1.0))
    if scale < 1:
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        points = (points + 0.5) * (size[0] / part.shape[1], size[1] / part.shape[0]) - 0.5
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    used, laid = _laid()
    where = (laid @ points[used].astype(np.float32)).reshape(SIDE, SIDE, 2)
    face = cv2.remap(part, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore
    turn = turned(points68)
    if turn > TURNED:
        face[:, SIDE // 2 :] = face[:, : SIDE // 2][:, ::-1]
    elif turn < -TURNED:
        face[:, : SIDE // 2] = face[:, SIDE // 2 :][:, ::-1]
    return face


def turned(points68: np.ndarray) -> float:
    """How far a head is turned: the nose's way off the middle along the line of the eyes, in widths of the jaw."""
    eyes = points68[42:48].mean(0) - points68[36:42].mean(0)
    along = points68 @ (eyes / (np.linalg.norm(eyes) + 1e-6))
    width = along[16] - along[0]
    return float((along[30] - (along[0] + along[16]) / 2) / (width if abs(width) > 1e-3 else 1e-3))


def _edges(face: np.ndarray) -> np.ndarray:
    """(CELLS, CELLS, DIRECTIONS): the root of the share of each direction in the edges of a
    place, against those around it."""
    gray = np.log(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32) + 8)
    dx, dy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    strength, direction = np.hypot(dx, dy), np.arctan2(dy, dx) * (DIRECTIONS / np.pi)
    low = np.floor(direction)
    share = direction - low
    first = low.astype(np.int32) % DIRECTIONS
    planes = np.zeros((SIDE * SIDE, DIRECTIONS), np.float32)
    pixels = np.arange(SIDE * SIDE)
    planes[pixels, first.ravel()] = (strength * (1 - share)).ravel()
    planes[pixels, (first.ravel() + 1) % DIRECTIONS] = (strength * share).ravel()
    size = SIDE // CELLS
    cells = planes.reshape(CELLS, size, CELLS, size * DIRECTIONS).sum(1).reshape(CELLS, CELLS, size, DIRECTIONS)
    cells = cv2.GaussianBlur(cells.sum(2) / size**2, (0, 0), 0.5)
    whole = np.linalg.norm(cells, axis=-1, keepdims=True)
    shares = whole + FLAT * whole.mean() + 1e-6
    around = cv2.blur(cells, (5, 5), borderType=cv2.BORDER_REPLICATE)
    return np.sqrt(cells / shares) - np.sqrt(around / shares)


def _colors(face: np.ndarray) -> np.ndarray:
    """(COLOR_CELLS, COLOR_CELLS, 2): red and blue against green, and against the middle of the face."""
    small = cv2.resize(face, (COLOR_CELLS, COLOR_CELLS), interpolation=cv2.INTER_AREA)
    red, green, blue = np.moveaxis(np.log(small.astype(np.float32) + 8), 2, 0)
    ratios = np.stack([red - green, blue - green], -1)
    return ratios - ratios[2:7, 1:7].mean((0, 1))


@cache
def _mean_features() -> tuple[np.ndarray, np.ndarray]:
    """MEAN and its mirror image, as _edges and _colors give them."""
    packed = np.frombuffer(b85decode(MEAN), np.int8).astype(np.float32)
    edges = packed[: CELLS * CELLS * DIRECTIONS // 2].reshape(CELLS, CELLS // 2, DIRECTIONS) / 100
    colors = packed[edges.size :].reshape(COLOR_CELLS, COLOR_CELLS // 2, 2) / 50
    mirrored = edges[:, ::-1, -np.arange(DIRECTIONS) % DIRECTIONS]
    return np.concatenate([mirrored, edges], 1), np.concatenate([colors[:, ::-1], colors], 1)


@cache
def _laid() -> tuple[list[int], np.ndarray]:
    """Which N points lay out a face, and (SIDE * SIDE, N): what takes them to where each pixel of the frontal picture
    lies (thin plates)."""
    mean = {**{_MIRRORED[n]: (-x, y) for n, (x, y) in _RIGHT_HALF.items()}, **_RIGHT_HALF}
    used = sorted(mean)
    points = np.array([mean[n] for n in used])
    across, down = np.meshgrid(np.linspace(LEFT, RIGHT, SIDE), np.linspace(TOP, BOTTOM, SIDE))
    places = np.stack([across.ravel(), down.ravel()], 1)

    def bend(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        square = ((a[:, None] - b[None]) ** 2).sum(-1)
        return square * np.log(np.maximum(square, 1e-12))

    plane = np.c_[np.ones(len(points)), points]
    stiff = bend(points, points) + STIFFNESS * np.eye(len(points))
    system = np.block([[stiff, plane], [plane.T, np.zeros((3, 3))]])
    sought = np.c_[bend(places, points), np.ones(len(places)), places]
    return used, (sought @ np.linalg.inv(system))[:, : len(points)].astype(np.float32)

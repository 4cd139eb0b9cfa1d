"""How often is one person taken for two, and two for one? Pieces of clips and portraits, each pair asked once.

python -m benchmarks.identity MEDIA face_landmarker.task [--seconds 2] [--pairs]

MEDIA: a folder with MANIFEST.csv (file, note that starts with the person's number, use) and portraits/. Clips are cut
into pieces, each with a view of the face every half second, as the follower keeps them; a portrait is a piece of one
view. A pair of people weighs the same however many pieces they have.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.face.detect import FaceFinder
from latentsync.face.identity import SAME, Looks, embed, likenesses

UNNUMBERED = {
    "edge/face_not_speaking_2.4s.mp4": "E1",
    "edge/face_then_noface_vfr_hevc.mov": "E1",
    "edge/noface_then_face_vfr_hevc.mov": "E1",
    "edge/hand_over_mouth_23.976fps.mp4": "E2",
    "edge/small_face_noaudio_noduration.mkv": "E3",
    "edge/looking_down_not_speaking_720p30.mp4": "E4",
    "edge/head_turn_sideways_12fps.mp4": "E5",
    "edge/tiny_face_270x480.mp4": "P02",
}
"""People of clips whose note gives no number."""
VIEWS_A_SECOND = 2
LONGEST = 20
"""Seconds of a clip that are used."""


@dataclass(frozen=True)
class Piece:
    person: str
    source: str
    looks: Looks


def sources(media: Path) -> Iterator[tuple[str, Path]]:
    """Person and file of every clip and portrait; of the many clips of one GRID speaker every sixth."""
    with (media / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["use"] in ("clip", "edge")]
    many = [row["file"] for row in rows if "grid_s1" in row["file"]]
    for row in rows:
        number = re.match(r"P\d\d", row["note"])
        person = UNNUMBERED.get(row["file"]) or (number.group() if number and row["use"] == "clip" else None)
        if person and row["file"] not in set(many) - set(many[::6]):
            yield person, media / row["file"]
    for folder, letter in (("london_neutral", "L"), ("london_smiling", "L"), ("canada", "C")):
        yield from ((letter + path.name[:3], path) for path in sorted((media / "portraits" / folder).glob("*.jpg")))


def views(path: Path, finder: FaceFinder) -> Iterator[np.ndarray]:
    """The largest face of a picture, or of a clip's frames half a second apart."""
    if path.suffix == ".jpg":
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)  # pyright: ignore
        for face in finder.detect(picture, thorough=False)[:1]:
            yield embed(picture, face.points68)
        return
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        step = max(1, round(float(stream.average_rate or 25) / VIEWS_A_SECOND))
        box = None
        for i, frame in enumerate(container.decode(stream)):
            if i % step or i > LONGEST * VIEWS_A_SECOND * step:
                continue
            picture = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            face = finder.refine(picture, box) if box else None
            face = face or next(iter(finder.detect(picture, thorough=False)), None)
            box = face.box if face else None
            if face:
                yield embed(picture, face.points68)


def pieces(media: Path, finder: FaceFinder, seconds: float) -> Iterator[Piece]:
    for person, path in sources(media):
        found = list(views(path, finder))
        count = round(len(found) / (seconds * VIEWS_A_SECOND)) if path.suffix != ".jpg" else 1
        for part in np.array_split(np.stack(found), max(1, count)) if found else ():
            looks = Looks.none()
            for view in part:
                looks.add(view)
            yield Piece(person, str(path.relative_to(media)), looks)


def kind(a: Piece, b: Piece) -> str:
    if a.person != b.person:
        low = "grid" in a.source and "grid" in b.source
        return "different, both GRID" if low else "different, other"
    if a.source == b.source:
        return "same, one clip"
    return "same, neutral and smiling" if a.person[0] == "L" else "same, other clip"


def joined(pieces: list[Piece], *, show: bool = False) -> dict[str, tuple[float, int]]:
    """Share of the pairs of each kind that are taken for one person, and how many pairs there are."""
    answers: dict[str, dict[tuple[str, str], list[bool]]] = defaultdict(lambda: defaultdict(list))
    table = likenesses(np.stack([piece.looks.mean for piece in pieces]))
    for (i, a), (j, b) in combinations(enumerate(pieces), 2):
        one = bool(table[i, j] >= SAME)
        people = (min(a.person, b.person), max(a.person, b.person))
        groups = (kind(a, b), "same, all" if a.person == b.person else "different, all")
        for group in groups:
            answers[group][people].append(one)
        if show and one != (a.person == b.person):
            print(f"{groups[0]}: {a.source} and {b.source}, {table[i, j]:.2f}")
    return {
        group: (float(np.mean([np.mean(pair) for pair in pairs.values()])), sum(map(len, pairs.values())))
        for group, pairs in answers.items()
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("media", type=Path)
    ask.add_argument("model", type=Path)
    ask.add_argument("--seconds", type=float, default=2.0, help="length of the pieces")
    ask.add_argument("--pairs", action="store_true", help="name every pair that is judged wrongly")
    given = ask.parse_args()
    with FaceFinder(given.model) as finder:
        everything = list(pieces(given.media, finder, given.seconds))
    print(f"{len({piece.person for piece in everything})} people; taken for one person")
    for group, (share, pairs) in sorted(joined(everything, show=given.pairs).items()):
        print(f"  {group:28} {100 * share:6.2f} % of {pairs} pairs")


if __name__ == "__main__":
    main()

"""What becomes of every frame of real footage, against what a person sees: writes docs/footage.md.

    python -m benchmarks.footage ../shared/media [--before CHECKOUT] [--only table|worst|before]

Faces are followed and nothing is painted; TRUTH says by hand what should become of the hard clips. Then benchmarks.hard
paints hard pieces of footage with the built-in model.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from latentsync.errors import UserError
from latentsync.face.aligned import AlignedFace
from latentsync.face.choose import choose
from latentsync.face.detect import FaceFinder
from latentsync.face.spans import BRIDGED, COVERED, FADED, PASSED, SYNCED, Span, spans
from latentsync.face.track import find_tracks
from latentsync.media.source import open_source
from latentsync.settings import Settings
from latentsync.timeline import Cut
from latentsync.weights.registry import find

from .hard import BEFORE_TITLE, WORST_TITLE, before_and_after, worst_ten

OUT = Path(__file__).parents[1] / "docs" / "footage.md"
ENDINGS = (".mp4", ".mov", ".mkv", ".ts", ".webm", ".mpg", ".jpg", ".png", ".mjpeg", ".webp")
MARGIN = 2  # frames by which a span's ends may differ
WHOLE, KEPT, COVER = {SYNCED, BRIDGED, FADED}, {PASSED}, {COVERED, PASSED}
"""What may become of a part: the mouth is made anew; all stays; what lies over the mouth stays."""
TRUTH: dict[str, list[tuple[int, int, set[str]]]] = {
    "edge/black_3s_to_4s.mp4": [(0, 75, WHOLE), (75, 101, KEPT), (101, 175, WHOLE)],
    "edge/cut_at_4s_two_people.mp4": [(0, 100, KEPT), (100, 200, WHOLE)],
    "edge/face_scrolls_up_and_out_30fps.mp4": [(0, 160, WHOLE), (175, 270, KEPT)],
    "edge/face_slides_out_3s_to_7s_and_back.mp4": [(0, 69, WHOLE), (80, 172, KEPT), (182, 225, WHOLE)],
    "edge/face_then_noface_vfr_hevc.mov": [(0, 72, WHOLE), (72, 192, KEPT)],
    "edge/noface_then_face_vfr_hevc.mov": [(0, 118, KEPT), (118, 190, WHOLE)],
    "edge/hand_over_mouth_23.976fps.mp4": [(0, 56, WHOLE), (57, 230, COVER), (233, 472, WHOLE)],
    "edge/noface_cars_12.5fps.mp4": [(0, 377, KEPT)],
    "edge/noface_cartoon_4s.mp4": [(0, 95, KEPT)],
}
"""By clip: half-open runs of frames, and what may become of the largest face there. What is in no run is not judged;
of all other clips and stills every frame is WHOLE, but in `reports`, which are judged by tests."""


@dataclass(frozen=True)
class Found:
    clip: str
    frames: int
    faces: int
    spans: tuple[Span, ...]
    fault: str = ""

    def states(self, frames: int) -> list[str]:
        said = [PASSED] * frames
        for span in self.spans:
            said[span.start : span.stop] = [span.state] * (span.stop - span.start)
        return said


def look(clip: Path, root: Path) -> Found:
    name = clip.relative_to(root).as_posix()
    try:
        with (
            FaceFinder(find("face_landmarker.task")) as finder,
            open_source(clip, Settings(), Cut()) as (source, shown),
        ):
            tracks = find_tracks(source.read(range(shown.frames)), finder)
            face = AlignedFace.from_track(choose(tracks, "largest"), 256, shown.fps)
            return Found(name, tracks.frames, len(tracks.faces), tuple(spans(face)))
    except UserError as error:
        return Found(name, 0, 0, (), str(error).replace(str(clip), name))


def wrong(found: Found) -> tuple[int, int]:
    """Frames of which something else became, MARGIN frames at each end of a run left out; frames judged."""
    default = [] if found.clip.startswith("reports") else [(0, found.frames, WHOLE)]
    runs = TRUTH.get(found.clip, default)
    frames = max([found.frames, *(stop for _, stop, _ in runs)])
    states, bad, judged = found.states(frames), 0, 0
    for start, stop, wanted in runs:
        part = states[start + (MARGIN if start else 0) : stop - (MARGIN if stop < frames else 0)]
        bad, judged = bad + sum(state not in wanted for state in part), judged + len(part)
    return bad, judged


def lines(found: list[Found]) -> Iterator[str]:
    judged = [wrong(one) for one in found]
    bad, of = (sum(part) for part in zip(*judged, strict=True))
    yield "# How real footage is handled\n"
    yield "<!-- made by python -m benchmarks.footage; do not edit -->\n"
    yield f"{len(found)} clips and pictures that others made, each with its largest face. Where one is shown below"
    yield "its origin is said. States and reasons are those of a run's report.\n"
    yield f"**Judged by hand: {of - bad} of {of} frames right** ({MARGIN} frames at each end of a part left out), in"
    yield f"{sum(of > 0 for _, of in judged)} clips.\n"
    yield "| clip | frames | faces | how it is handled | by hand |"
    yield "|---|---|---|---|---|"
    for one, (bad, of) in zip(found, judged, strict=True):
        said = [
            f"{s.start}–{s.stop - 1} {s.state}" + (f" ({s.reason})" if s.reason else "")
            for s in one.spans
            if s.state != SYNCED or len(one.spans) > 1
        ]
        text = one.fault or "; ".join(said[:12]) + ("; …" if len(said) > 12 else "") or "all synced"
        yield f"| {one.clip} | {one.frames} | {one.faces} | {text} | {f'{of - bad}/{of}' if of else ''} |"


def follow_all(root: Path) -> str:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in ENDINGS and "portraits" not in p.parts)
    with ProcessPoolExecutor(2) as pool:
        found = []
        for one in pool.map(partial(look, root=root), files):
            found.append(one)
            print(one.clip, one.faces, one.fault or [(s.start, s.stop, s.state) for s in one.spans][:12], flush=True)
    return "\n".join(lines(found)) + "\n"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("media", type=Path)
    ask.add_argument("--only", choices=("table", "worst", "before"), help="leave the rest of the page as it is")
    ask.add_argument("--before", type=Path, metavar="CHECKOUT", help="an older commit, for pictures before and after")
    given = ask.parse_args()
    known = OUT.read_text(encoding="utf-8") if OUT.exists() else ""
    table, _, rest = known.partition(WORST_TITLE)
    worst, _, compared = rest.partition(BEFORE_TITLE)
    pictures = OUT.parent / "footage"
    if given.only in (None, "table"):
        table = follow_all(given.media)
    if given.only in (None, "worst"):
        worst = "\n\n".join(worst_ten(given.media, pictures))
    if given.before and given.only in (None, "before"):
        compared = "\n".join(before_and_after(given.media, given.before, pictures))
    parts = (("", table), (WORST_TITLE, worst), (BEFORE_TITLE, compared))
    text = "\n\n".join(f"{title}\n\n{part.strip()}".strip() for title, part in parts if part.strip())
    OUT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

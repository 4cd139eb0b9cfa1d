"""`latentsync faces`: who is in a clip, under which number."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..settings import Progress, Settings
from .parameters import option

if TYPE_CHECKING:
    import numpy as np

    from ..face.detect import Box
    from ..face.track import FaceTrack, Tracks
    from ..media.source import Shown, Source

TILE, CAPTION, COLUMNS = 400, 56, 4
"""Side of the picture of one face in pixels, the text under it, and pictures in a row."""
AROUND = 2.2
"""How much of a frame is shown around one face, in face heights, brows to chin."""


def faces(
    clip: Annotated[Path, typer.Argument(help="A video or a picture.")],
    out: Annotated[
        Path | None, option(None, "--out -o", "Also draw the faces with their numbers (.png, .jpg).", "PICTURE")
    ] = None,
    json: Annotated[Path | None, option(None, "--json", "Also write the list as JSON; - prints it.", "REPORT")] = None,
) -> None:
    """List the faces in a video or a picture, with the numbers for --face.

    \b
      latentsync faces two.mp4 --out faces.png
      latentsync run -v two.mp4 -a speech.wav -o out.mp4 --face 1
    """
    from ..audio.clues import clues_for
    from ..face.choose import choose
    from ..face.detect import FaceFinder
    from ..face.track import find_tracks
    from ..media.source import open_source
    from ..timeline import Cut
    from ..weights.registry import find
    from .console import show_json, show_table, stages, write_json
    from .contact_sheet import write_picture

    _check_names(clip, out, json)
    with (
        open_source(clip, Settings(max_side=0), Cut()) as (source, shown),
        FaceFinder(find("face_landmarker.task")) as finder,
        stages((), title=clip.name, keep=False) as on_step,
    ):

        def report(done: int) -> None:
            on_step(Progress("track", done, shown.frames))

        tracks = find_tracks(source.read(range(shown.frames)), finder, on_step=report)
        clues = clues_for("auto", source, tracks.frames, shown.fps, lambda: finder)
        speaker = choose(tracks, "auto", clues)
        if out is not None:
            write_picture(out, draw(source, tracks, float(shown.fps)))
    facts = _facts(clip, tracks, shown, speaker.index)
    if str(json) == "-":
        show_json(facts)
        return
    width, height = tracks.size
    count = f"{len(tracks.faces)} face{'s' * (len(tracks.faces) > 1)}"
    still = tracks.frames == 1
    place = "a picture" if still else f"{tracks.frames} frames"
    typer.echo(f"{clip.name}: {count} in {place} of {width} × {height}; auto is {speaker.index}")
    titles = ("face", "height", "at") if still else ("face", "height", "at", "seen", "of the time")
    show_table([_row(face)[: len(titles)] for face in facts["faces"]], titles)
    if json is not None:
        write_json(json, facts)


def _check_names(clip: Path, out: Path | None, json: Path | None) -> None:
    from .console import check_writable

    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out is {out}; its name must end in .png or .jpg.")
    for path in (out, json):
        check_writable(path)
        if path is not None and path.exists() and clip.exists() and path.samefile(clip):
            raise UserError(f"{path} is both input and output; give another name.")


def _facts(clip: Path, tracks: "Tracks", shown: "Shown", speaker: int) -> dict[str, Any]:
    """What the JSON has. auto: the face that --face auto takes. at: median center; seen: seconds, from and to."""
    fps = float(shown.fps)
    faces = [
        {
            "face": track.index,
            "height": round(track.height, 1),
            "at": [round(value, 1) for value in track.center],
            "seen": [[round(i / fps, 3) for i in run] for run in _runs(track)],
            "frames": int(track.present.sum()),
            "share": round(float(track.present.mean()), 4),
        }
        for track in tracks.faces
    ]
    size = {"frames": tracks.frames, "fps": str(shown.fps), "size": tracks.size}
    return {"clip": str(clip), **size, "cuts": tracks.cuts, "auto": speaker, "faces": faces}


def _runs(track: "FaceTrack") -> list[tuple[int, int]]:
    """Segments, those that follow each other at once (over a cut) as one."""
    runs: list[tuple[int, int]] = []
    for start, stop in track.segments:
        runs[-1:] = [(runs[-1][0], stop)] if runs and runs[-1][1] == start else [*runs[-1:], (start, stop)]
    return runs


def _row(face: dict[str, Any]) -> list[str]:
    x, y = face["at"]
    return [str(face["face"]), f"{face['height']:.0f} px", f"{x:.0f},{y:.0f}", _times(face["seen"]), _share(face)]


def _times(seen: Sequence[Sequence[float]], most: int = 4) -> str:
    shown = [f"{start:.1f}-{stop:.1f}" for start, stop in seen[:most]]
    return ", ".join(shown) + (f" and {len(seen) - most} more" if len(seen) > most else "") + " s"


def _share(face: dict[str, Any]) -> str:
    return f"{100 * face['share']:.0f} %"


def draw(source: "Source", tracks: "Tracks", fps: float) -> "np.ndarray":
    """(H, W, 3) uint8 RGB: a frame in which all faces are seen, with their numbers; where there is none, one picture
    of each face."""
    import numpy as np

    from ..face.preview import boxes_at, numbered

    together = np.flatnonzero(np.all([track.seen & track.present for track in tracks.faces], axis=0))
    if len(together):
        i = int(together[len(together) // 2])
        return numbered(next(iter(source.read([i]))), boxes_at(tracks, i))
    tiles = [_tile(source, tracks, track, fps) for track in tracks.faces]
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def _tile(source: "Source", tracks: "Tracks", track: "FaceTrack", fps: float) -> "np.ndarray":
    """(TILE + CAPTION, TILE, 3): the face where it looks straightest, its number, and when it is seen."""
    import cv2
    import numpy as np

    from ..face.align import resample
    from ..face.choose import best_frames
    from ..face.preview import boxes_at, numbered

    (i,) = best_frames(track, 1)
    side = AROUND * float(np.ptp(track.landmarks[i][:, 1]))
    corner, scale = track.landmarks[i].mean(0) - side / 2, TILE / side
    into = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    picture = resample(next(iter(source.read([i]))), into, TILE)
    boxes: dict[int, Box] = {
        index: tuple(((np.array(box) - np.tile(corner, 2)) * scale).tolist())
        for index, box in boxes_at(tracks, i).items()
    }
    tile = np.full((TILE + CAPTION, TILE, 3), 255, np.uint8)
    tile[:TILE] = numbered(picture, boxes, track.index)
    seen = [[frame / fps for frame in run] for run in _runs(track)]
    lines = (f"{track.index}: {track.height:.0f} px, {100 * track.present.mean():.0f} % of the time", _times(seen, 3))
    for n, line in enumerate(lines):
        cv2.putText(tile, line, (8, TILE + 22 + 22 * n), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    return tile

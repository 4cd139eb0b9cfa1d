"""Pairs of a video and another speech, as a list of jobs for `latentsync batch`."""

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import atomic_path
from .clips import videos

SOUNDS = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".aac")


@dataclass(frozen=True)
class Pair:
    video: Path
    audio: Path

    @property
    def out(self) -> str:
        return f"{self.video.stem}--{self.audio.stem}.mp4"


def speeches(folder: Path) -> list[Path]:
    """All sounds below a folder, or else its videos, whose sound is the speech. UserError: there are none."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one with speech.")
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SOUNDS and not p.name.startswith(".")]
    return found or list(videos(folder).values())


def draw_pairs(video: Sequence[Path], speech: Sequence[Path], seed: int, count: int = 0) -> list[Pair]:
    """Pairs without a clip's own speech (a file of the same name). count: how many, spread evenly over videos and
    speeches; 0: one for each video. The same files and seed give the same pairs.

    UserError: there are fewer, or two pairs would be written to one file.
    """
    draw = random.Random(seed)
    rows, columns = (draw.sample(sorted(paths), len(paths)) for paths in (video, speech))
    turns = []  # of each video: the speeches from a place of its own on, so that each speech has its turn
    for i, row in enumerate(rows):
        start = i % len(columns)
        turns.append([Pair(row, one) for one in columns[start:] + columns[:start] if one.stem != row.stem])
    pairs = [turn[n] for n in range(len(columns)) for turn in turns if n < len(turn)]
    wanted = count or len(rows)
    if len(pairs) < wanted:
        raise UserError(
            f"{len(rows)} videos and {len(columns)} speeches have {len(pairs)} pairs that are not a clip and its own"
            f" speech, and {wanted} are wanted; ask for fewer, or give more files."
        )
    chosen = sorted(pairs[:wanted], key=lambda pair: (pair.video, pair.audio))
    names = [pair.out for pair in chosen]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Two pairs would be written to {doubles[0]}; give their files names of their own.")
    return chosen


def write_pairs(path: Path, pairs: Sequence[Pair]) -> bool:
    """Write the list, if it is not there. Returns whether it was. UserError: another list is there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("video", "audio", "out"))
    writer.writerows((pair.video.absolute(), pair.audio.absolute(), pair.out) for pair in pairs)
    if path.is_file():
        if path.read_text(encoding="utf-8") == text.getvalue():
            return True
        raise UserError(f"{path} holds other pairs, and results may belong to them; name another file with --out.")
    with atomic_path(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
    return False

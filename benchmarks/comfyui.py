"""Memory of a running ComfyUI: python -m benchmarks.comfyui --soak 20 | --minutes 3 [--height 1080] [--clip FILE]

--soak: that many runs in a row (8 or more) of the single nodes and of the streaming node, each with another seed; what
the server holds after the last runs against the third and its neighbours, and its temporary files. --minutes: one long
clip through the streaming node; the most that the server holds against what it held when nothing had run yet, models
and libraries included. Starts a ComfyUI of its own (COMFYUI_PATH, COMFYUI_PYTHON) with the built-in model in a
temporary folder. Without --clip the picture is a portrait (scikit-image's astronaut) that sways; the sound is noise
that comes and goes like syllables.
"""

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.memory import MEGABYTE, frames_of, swaying, write_speech
from latentsync.media.audio_track import AudioTrack
from latentsync.media.writer import VideoWriter
from tests.nodes.graphs import Graph
from tests.nodes.parts import parts, save, streamed
from tests.nodes.server import ComfyServer, find_comfyui

FPS = Fraction(25)
FIRST = 3
"""The run after which everything is loaded that stays loaded."""
ROUND = 3
"""Runs whose median counts: one look may fall into a moment of tidying up."""
SOAK_LIMIT, LONG_LIMIT = 0.02, 1500
"""Growth of a soak as a share; of a long clip in megabytes."""
EVERY = 0.5
"""Seconds between two looks at the server's memory."""


def on_canvas(frames: Iterator[np.ndarray], width: int, height: int) -> Iterator[np.ndarray]:
    """Each picture as large as it fits, in the middle of a gray one of this size."""
    import cv2

    for frame in frames:
        scale = min(width / frame.shape[1], height / frame.shape[0])
        size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
        x, y = (width - size[0]) // 2, (height - size[1]) // 2
        canvas = np.full((height, width, 3), 96, np.uint8)
        canvas[y : y + size[1], x : x + size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        yield canvas


def write_clip(path: Path, clip: Path | None, height: int, frames: int) -> Path:
    """A 16:9 video of this height with sound, of a clip that is repeated or of the portrait."""
    width = round(height * 16 / 9 / 2) * 2
    pictures = on_canvas(frames_of(clip), width, height) if clip else swaying(width, height)
    sound = path.with_suffix(".wav")
    write_speech(sound, float(frames / FPS))
    with VideoWriter(path, width, height, FPS, audio=AudioTrack(sound), crf=23) as out:
        for picture in islice(pictures, frames):
            out.write(picture)
    sound.unlink()
    return path


class Watch(threading.Thread):
    """The most memory that a server holds while this runs, in megabytes, and when it was looked at."""

    def __init__(self, server: ComfyServer) -> None:
        super().__init__(daemon=True)
        self.server, self.over = server, threading.Event()
        self.seen: list[int] = []

    def run(self) -> None:
        while not self.over.wait(EVERY):
            self.seen.append(held(self.server))

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def held(server: ComfyServer) -> int:
    return round(server.rss() / MEGABYTE)


def single_nodes(clip: str, seed: int) -> Graph:
    return parts(clip, sample={"seed": seed, "steps": 1})


def one_node(clip: str, seed: int) -> Graph:
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), seed=seed, steps=1))
    return g


def soak(server: ComfyServer, clip: str, runs: int, workflow: Callable[[str, int], Graph]) -> dict[str, Any]:
    """Memory (MB) and number of temporary files after every run."""
    memory, files, seconds = [], [], []
    for seed in range(1, runs + 1):
        run = server.queue(workflow(clip, seed)).check()
        seconds.append(round(run.seconds, 1))
        memory.append(held(server))
        files.append(sum(1 for path in server.temp.rglob("*") if path.is_file()))
        print(f"{workflow.__name__:>14}{seed:6}{memory[-1]:8}{files[-1]:8}{seconds[-1]:10}", flush=True)
    growth = median(memory[-ROUND:]) / median(memory[FIRST - 1 :][:ROUND]) - 1
    return {"workflow": workflow.__name__, "mb": memory, "temp_files": files, "seconds": seconds, "growth": growth}


def soak_all(server: ComfyServer, clip: str, runs: int) -> list[dict[str, Any]]:
    print(f"{'workflow':>14}{'run':>6}{'MB':>8}{'files':>8}{'seconds':>10}")
    rows = [soak(server, clip, runs, workflow) for workflow in (single_nodes, one_node)]
    for row in rows:
        more = row["temp_files"][-1] - row["temp_files"][FIRST - 1]
        good = row["growth"] < SOAK_LIMIT and more <= 0
        what = f"{row['workflow']}: {row['growth']:+.1%} from run {FIRST} to {runs}, {more:+} temporary files"
        print(f"{what}: {verdict(good)}")
    return rows


def long_clip(server: ComfyServer, clip: str) -> dict[str, Any]:
    before = held(server)
    server.reset_peak()
    g = Graph()
    how = {"steps": 1, "guidance": 1.0, "save_to": "output", "filename_prefix": "long"}
    g.node("PreviewAny", source=streamed(g, g.node("LoadVideo", file=clip), **how))
    with Watch(server) as watch:
        run = server.queue(g, timeout=6 * 3600).check()
    peak = round(server.peak_rss() / MEGABYTE)
    tenths = [int(part.max()) for part in np.array_split(watch.seen, 10) if part.size]
    row = {"before_mb": before, "peak_mb": peak, "growth_mb": peak - before, "tenths_mb": tenths}
    print(f"before {before} MB, peak {peak} MB, growth {peak - before} MB in {run.seconds:.0f} s", end=": ")
    print(verdict(peak - before < LONG_LIMIT))
    print("most in each tenth of the time:", *tenths)
    return row | {"seconds": round(run.seconds, 1)}


def verdict(good: bool) -> str:
    return "within what is allowed" if good else "MORE than is allowed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=int, default=0, help="runs in a row of each workflow")
    parser.add_argument("--frames", type=int, default=18, help="of the soak's clip")
    parser.add_argument("--minutes", type=float, default=0, help="length of the long clip")
    parser.add_argument("--height", type=int, default=1080, help="of the long clip, in pixels; 16:9")
    parser.add_argument("--clip", type=Path, help="a video with a face, repeated to each length")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    installation = find_comfyui()
    if installation is None:
        raise SystemExit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python with its packages.")
    figures: dict[str, Any] = {}
    for name, wanted in (("long", arguments.minutes), ("soak", arguments.soak)):
        with tempfile.TemporaryDirectory() as folder:
            if not wanted:
                continue
            height, frames = (arguments.height, round(wanted * 60 * FPS)) if name == "long" else (360, arguments.frames)
            clip = write_clip(Path(folder) / "clip.mp4", arguments.clip, height, frames)
            with ComfyServer(installation, Path(folder) / "base") as server:
                server.put(clip)
                figures[name] = long_clip(server, clip.name) if name == "long" else soak_all(server, clip.name, wanted)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

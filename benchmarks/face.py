"""Times of the face stages: python -m benchmarks.face [--clip FILE --model face_landmarker.task] [--json]

Without a clip a synthetic 1080 x 1920 frame is used and only the arithmetic is timed (crop, paste); with a clip also
decoding apart, the finding and following of its faces. OpenCV is held to one thread; MediaPipe uses its own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.face.align import align_matrices, crop_face, template
from latentsync.face.choose import choose
from latentsync.face.composite import paste
from latentsync.face.detect import FaceFinder
from latentsync.face.track import find_tracks

FACE_SCALE = 1.6
"""Synthetic face: the template at 256 times this, a face box of 336 x 448 pixels."""


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median milliseconds of wall clock and of this thread's CPU time, after one run to warm up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.thread_time()
        work()
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.thread_time() - start_cpu))
    return {"wall_ms": round(median(wall), 2), "cpu_ms": round(median(cpu), 2)}


def synthetic(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame of smooth noise and the three points of a face in its middle."""
    coarse = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    points = template(256) * FACE_SCALE
    return frame, points - points.mean(0) + np.array((width / 2, height / 3))


def frames_of(clip: Path, limit: int) -> Iterator[np.ndarray]:
    import av

    with av.open(str(clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == limit:
                return
            yield np.ascontiguousarray(frame.to_ndarray(format="rgb24"))


def stages(frame: np.ndarray, points: np.ndarray, resolution: int, repeats: int) -> dict[str, dict[str, float]]:
    matrix = align_matrices(points[None], resolution)[0]
    crop = crop_face(frame, matrix, resolution)
    clip = np.repeat(points[None], 1000, 0)

    def both() -> None:
        paste(frame, crop_face(frame, matrix, resolution), matrix, resolution=resolution)

    return {
        f"matrices of 1000 frames, {resolution}": timed(lambda: align_matrices(clip, resolution), repeats),
        f"crop, {resolution}": timed(lambda: crop_face(frame, matrix, resolution), repeats),
        f"paste, {resolution}": timed(lambda: paste(frame, crop, matrix, resolution=resolution), repeats),
        f"crop + paste, {resolution}": timed(both, repeats),
        f"reference crop + paste, {resolution}": timed(
            lambda: paste(
                frame,
                crop_face(frame, matrix, resolution, reference=True),
                matrix,
                resolution=resolution,
                reference=True,
            ),
            max(3, repeats // 5),
        ),
    }


def following(frames: list[np.ndarray], model: Path) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    with FaceFinder(model) as finder:
        start, start_cpu = time.perf_counter(), time.process_time()
        tracks = find_tracks(frames, finder)
        wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        each = 1000 / len(frames)
        rows = {
            "find and follow, per frame": {"wall_ms": round(wall * each, 2), "cpu_ms": round(cpu * each, 2)},
            "thorough search, one frame": timed(lambda: finder.detect(frames[0]), 3),
        }
    return rows, choose(tracks, "largest").points[0].astype(np.float64)


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"{'stage':40} {'wall ms':>9} {'cpu ms':>9}"]
    return "\n".join(lines + [f"{name:40} {row['wall_ms']:9.2f} {row['cpu_ms']:9.2f}" for name, row in rows.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a video with a face; needs --model")
    parser.add_argument("--model", type=Path, help="MediaPipe's face_landmarker.task")
    parser.add_argument("--frames", type=int, default=60, help="frames of the clip to follow")
    parser.add_argument("--resolution", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if (arguments.clip is None) != (arguments.model is None):
        parser.error("--clip and --model go together")
    cv2.setNumThreads(1)
    rows: dict[str, dict[str, float]] = {}
    if arguments.clip:
        frames = list(frames_of(arguments.clip, arguments.frames))
        rows, points = following(frames, arguments.model)
        frame = frames[0]
    else:
        frame, points = synthetic(1080, 1920)
    for resolution in arguments.resolution:
        rows |= stages(frame, points, resolution, arguments.repeats)
    if arguments.json:
        size = {"width": frame.shape[1], "height": frame.shape[0]}
        print(json.dumps({"frame": size, "opencv": cv2.__version__, "stages": rows}, indent=2))
    else:
        print(f"frame {frame.shape[1]} x {frame.shape[0]}, OpenCV {cv2.__version__}, one thread\n{table(rows)}")


if __name__ == "__main__":
    main()

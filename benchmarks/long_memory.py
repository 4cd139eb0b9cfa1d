"""Memory of one long run: python -m benchmarks.long_memory CLIP [--minutes 60] [--every 10] [--dtype fp32] [--loop]

The clip is repeated to the length by copying its packets, picture and sound, and the whole pipeline runs on it in a
process of its own, whose resident memory is noted. Printed is the slope of a straight line through what was noted after
the first minute of each of the two passes (finding faces, making mouths), in MB per minute of clip.

With --loop the pipeline itself repeats the clip under a speech of that length, so that faces are soon found.
"""

import argparse
import json
import sys
import tempfile
import time
import wave
from collections import defaultdict
from math import ceil
from pathlib import Path
from subprocess import Popen
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE

from .memory import MEGABYTE

SETTLED = 60.0
"""Seconds at the beginning of a pass that do not count: caches fill, and threads start."""


def repeated(clip: Path, seconds: float, path: Path) -> Path:
    """The clip again and again, for so long at least; packets are copied, so every seam is a cut."""
    with av.open(str(path), "w") as out:
        streams: dict[int, Any] = {}
        shift, last = 0.0, defaultdict[int, int](lambda: -(2**40))
        while shift < seconds:
            with av.open(str(clip)) as source:
                used = [*source.streams.video[:1], *source.streams.audio[:1]]
                ends = [0.0]
                streams = streams or {stream.index: out.add_stream_from_template(stream) for stream in used}
                for packet in source.demux(used):
                    pts, dts, base = packet.pts, packet.dts, packet.time_base
                    if pts is None or dts is None or base is None:
                        continue
                    ends.append(float((pts + (packet.duration or 0)) * base))
                    if shift and pts < 0:  # sound from before the picture would lie over the end before
                        continue
                    moved, index = round(shift / base), packet.stream.index
                    last[index] = max(dts + moved, last[index] + 1)
                    packet.pts, packet.dts, packet.stream = pts + moved, last[index], streams[index]
                    out.mux(packet)
            shift += max(ends)
    return path


def resident(process: int) -> float:
    """Megabytes of a process (Linux)."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * 4096 / MEGABYTE


def long_speech(clip: Path, seconds: float, path: Path) -> Path:
    """The clip's sound again and again, as a WAV file."""
    samples = (load_audio(clip).waveform.numpy().clip(-1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for _ in range(ceil(seconds * SAMPLE_RATE / len(samples))):
            out.writeframes(samples.tobytes())
    return path


def watched(
    clip: Path, speech: Path | None, folder: Path, checkpoint: str, dtype: str, every: float
) -> list[dict[str, Any]]:
    """[{seconds, megabytes, stage, frame}, …] of a run that is told of by its child. speech: None: the clip's own."""
    told = folder / "told"
    files = (clip, speech or "", folder / "out.mp4")
    command = [sys.executable, "-m", "benchmarks.long_memory", "--child", *map(str, files)]
    child = Popen([*command, checkpoint, dtype, str(told)])
    start, rows = time.monotonic(), []
    while child.poll() is None:
        time.sleep(every)
        if child.poll() is None and told.exists() and (said := told.read_text()):  # empty while it is written
            stage, _, done = said.partition(" ")
            megabytes = round(resident(child.pid), 1)
            rows.append({"seconds": time.monotonic() - start, "megabytes": megabytes, "stage": stage, "done": done})
            print(f"{rows[-1]['seconds']:8.0f} s {megabytes:8.1f} MB  {stage} {done}", flush=True)
    if child.returncode:
        raise SystemExit(child.returncode)
    return rows


def run_once(clip: str, speech: str, out: str, checkpoint: str, dtype: str, told: str) -> None:
    from latentsync.models.device import pick_device, pick_dtype
    from latentsync.pipeline import lipsync_file
    from latentsync.settings import Progress, Settings
    from latentsync.weights.bundle import load_models

    def tell(progress: Progress) -> None:
        Path(told).write_text(f"{progress.stage} {progress.done / max(1, progress.total):.4f}")

    device = pick_device("auto")
    with load_models(checkpoint, device=device, dtype=pick_dtype(dtype, device)) as models:
        settings = Settings(steps=1, guidance=1, codec="h264", fit="loop")  # more steps take time, not memory
        report = lipsync_file(clip, speech or None, out, models=models, settings=settings, on_step=tell)
    print(f"{report.frames} frames, {report.repainted} repainted")


def slope(rows: list[dict[str, Any]], stage: str, minutes: float) -> float:
    """Megabytes per minute of the clip, in this stage once it has settled; nan where too little was noted."""
    mine = [row for row in rows if row["stage"] == stage and float(row["done"]) < 1]
    mine = [row for row in mine if row["seconds"] >= mine[0]["seconds"] + SETTLED]
    if len(mine) < 3:
        return float("nan")
    places = [minutes * float(row["done"]) for row in mine]
    return float(np.polyfit(places, [row["megabytes"] for row in mine], 1)[0])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_once(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="a video with a face and sound")
    parser.add_argument("--minutes", type=float, default=60.0, help="length that it is repeated to")
    parser.add_argument("--loop", action="store_true", help="let the pipeline repeat it, under a speech of that length")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks at the memory")
    parser.add_argument("--checkpoint", default="nano", help="a known name or a file")
    parser.add_argument("--dtype", default="auto", help="as for latentsync run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clip, seconds, speech = arguments.clip, 60 * arguments.minutes, None
        if arguments.loop:
            speech = long_speech(clip, seconds, folder / "speech.wav")
        else:
            clip = repeated(clip, seconds, folder / f"long{clip.suffix}")
        rows = watched(clip, speech, folder, arguments.checkpoint, arguments.dtype, arguments.every)
    slopes = {stage: slope(rows, stage, arguments.minutes) for stage in dict.fromkeys(row["stage"] for row in rows)}
    for stage, value in slopes.items():
        print(f"{stage}: {value:+.2f} MB per minute of clip")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "slopes": slopes}, indent=2))


if __name__ == "__main__":
    main()

"""Peak memory against the length of the clip: python -m benchmarks.memory [--seconds 30 180] [--json FILE]

Each length runs in a process of its own, from file to file. Counted is what the work takes beyond start-up (libraries
and models loaded). Without --checkpoint a network of the built-in model's size with random weights is used; without
--clip a portrait (scikit-image's astronaut) that sways in a 1920 x 1080 picture, with noise as speech.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np

MEGABYTE = 2**20
LIMIT = 1200
"""Megabytes that a clip of any length may take beyond start-up."""
GROWTH = 0.1
"""By how much the longest may take more than the shortest."""


def peak() -> int:
    """Bytes: the largest resident size since the last reset (Linux), else since the start."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    with suppress(OSError):  # not Linux: peak() then counts from the start
        Path("/proc/self/clear_refs").write_text("5")


def swaying(width: int, height: int) -> Iterator[np.ndarray]:
    """Endless frames of a portrait that moves to and fro before a plain wall."""
    import cv2
    import skimage.data

    side = height
    portrait = cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    wall = np.full((height, width, 3), 96, np.uint8)
    for i in cycle(range(200)):
        x = (width - side) // 2 + round(60 * np.sin(2 * np.pi * i / 200))
        frame = wall.copy()
        frame[:, x : x + side] = portrait
        yield frame


def frames_of(clip: Path) -> Iterator[np.ndarray]:
    """Endless frames of a clip, from its start again and again."""
    while True:
        with av.open(str(clip)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


def write_clip(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    stream: Any = None
    with av.open(str(path), "w") as out:
        for image in frames:
            if stream is None:
                stream = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "20"})
                stream.height, stream.width, stream.pix_fmt = *(n // 2 * 2 for n in image.shape[:2]), "yuv420p"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(stream.encode(None))


def write_speech(path: Path, seconds: float, rate: int = 16000) -> None:
    """Noise that comes and goes like syllables."""
    random = np.random.default_rng(0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        for start in range(0, round(seconds * rate), rate):
            t = np.arange(start, min(start + rate, round(seconds * rate))) / rate
            loud = 8000 * np.sin(2 * np.pi * 2 * t) ** 2
            file.writeframes((loud * random.standard_normal(len(t))).clip(-32767, 32767).astype("<i2").tobytes())


def random_checkpoint(path: Path) -> Path:
    """The built-in model's layout and size with random weights."""
    import torch
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    from latentsync.models.unet import UNet
    from latentsync.weights.convert import save_model
    from recipes.nano.data import RESOLUTION
    from recipes.nano.unet import UNetTraining

    torch.manual_seed(0)
    unet = UNetTraining()
    facts = {
        "version": "nano",
        "resolution": RESOLUTION,
        "prediction_type": "sample",
        "unet_groups": unet.norm_groups,
        "unet_residual": unet.config.residual,
        "vae_scaling": 1.0,
    }
    return save_model(path, UNet(unet.config).state_dict(), vae_state=AutoencoderTiny().state_dict(), metadata=facts)


def measure(folder: Path, checkpoint: str, settings: dict[str, Any]) -> dict[str, Any]:
    """In a fresh process: load everything, then lip-sync folder/clip.mp4 to folder/speech.wav."""
    from latentsync.pipeline import lipsync_file
    from latentsync.settings import Settings
    from latentsync.weights.bundle import load_models

    with load_models(checkpoint) as models:
        reset_peak()
        before, start = peak(), time.perf_counter()
        report = lipsync_file(
            folder / "clip.mp4", folder / "speech.wav", folder / "out.mp4", models=models, settings=Settings(**settings)
        )
        return {
            "frames": report.frames,
            "size": report.size,
            "repainted": report.repainted,
            "startup_mb": round(before / MEGABYTE),
            "beyond_mb": round((peak() - before) / MEGABYTE),
            "seconds": round(time.perf_counter() - start, 1),
            "stages": report.as_dict()["timings"],
        }


def run_child(folder: Path, checkpoint: str, settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(folder), checkpoint, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    settings = {"steps": arguments.steps, "guidance": arguments.guidance, "window_batch": arguments.window_batch}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = arguments.checkpoint or str(random_checkpoint(folder / "nano.safetensors"))
        width, height = (int(n) for n in arguments.size.split("x"))
        for seconds in arguments.seconds:
            frames = frames_of(arguments.clip) if arguments.clip else swaying(width, height)
            write_clip(folder / "clip.mp4", islice(frames, round(seconds * arguments.fps)), arguments.fps)
            write_speech(folder / "speech.wav", seconds)
            rows.append({"clip_seconds": seconds} | run_child(folder, checkpoint, settings))
            print(table(rows[-1:], header=len(rows) == 1), flush=True)
    return rows


def table(rows: list[dict[str, Any]], *, header: bool = True) -> str:
    columns = ("clip_seconds", "frames", "startup_mb", "beyond_mb", "seconds")
    lines = ["".join(f"{name:>14}" for name in columns)] if header else []
    return "\n".join(lines + ["".join(f"{row[name]:14g}" for name in columns) for row in rows])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, checkpoint, settings = sys.argv[2:]
        print(json.dumps(measure(Path(folder), checkpoint, json.loads(settings))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30, 180], help="lengths of the clips to try")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--size", default="1920x1080", help="of the synthetic clip")
    parser.add_argument("--clip", type=Path, help="a video with a face, repeated to each length")
    parser.add_argument("--checkpoint", help="a known name or a file; default: random weights of the built-in size")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--window-batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = run(arguments)
    growth = rows[-1]["beyond_mb"] / rows[0]["beyond_mb"] - 1
    verdict = "within" if growth <= GROWTH and rows[-1]["beyond_mb"] < LIMIT else "MORE than"
    print(f"growth {growth:+.1%} from first to last: {verdict} what is allowed ({GROWTH:.0%}, {LIMIT} MB)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "growth": growth}, indent=2))


if __name__ == "__main__":
    main()

"""Unit costs for planning: python -m benchmarks.batch CLIP [--frames 100] [--json FILE], or --count, or --list 10000

Every stage is run alone and measured in CPU seconds of this process on one thread, so that other work on the machine
does not count: reading, finding faces, rendering (by the engine's own stages), writing; the sizes of what a segmented
run sends; and loading. --count: operations of the public networks, counted without computing them. --list: what so many
jobs cost the one machine that hands them out. docs/scale.md is computed from these.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync import rendering
from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.audio.whisper_features import SpeechFeatures
from latentsync.batch.jobs import read_jobs
from latentsync.batch.segments import make_patch
from latentsync.face.track import find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.pipeline import lipsync
from latentsync.settings import GUIDANCE, STEPS, WINDOW, Settings
from latentsync.weights.bundle import Models, load_models

VOICE = Path(__file__).resolve().parents[1] / "latentsync" / "assets" / "voice.flac"
FPS = 25
RENDERING = ("crop", "encode", "sample", "decode", "paste")


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


@contextmanager
def cpu_clock() -> Iterator[None]:
    """The engine's stages in CPU seconds instead of those on the wall."""
    known = rendering.time
    rendering.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    try:
        yield
    finally:
        rendering.time = known


def measure(clip: Path, count: int, settings: Settings, folder: Path) -> dict[str, Any]:
    load, models = cpu(lambda: load_models("nano"))
    info = probe(clip)
    count = min(count, info.frames)
    with VideoReader(info) as reader:
        read, frames = cpu(lambda: list(reader.read(range(count))))
    faces, _ = cpu(lambda: find_tracks(frames, models.finder))
    speech = voice(Fraction(count) / info.fps)
    whisper, _ = cpu(lambda: SpeechFeatures(speech, SAMPLE_RATE, models.whisper).rows(0, 1))
    result = rendered(frames, speech, info.fps, models, settings)
    write, size = cpu(lambda: write_video(folder / "out.mp4", result.frames, info.fps))
    patches = [make_patch(*pair).pixels.nbytes for pair in zip(result.frames, result.mask, strict=True)]
    stages = {"read": read, "track": faces, **{name: result.report.timings[name] for name in RENDERING}, "write": write}
    per_frame = {name: round(1000 * spent / count, 2) for name, spent in stages.items()}
    per_frame["whisper"] = round(1000 * whisper / (30 * float(info.fps)), 2)
    models.finder.close()
    return {
        "clip": clip.name,
        "size": [info.width, info.height],
        "fps": str(info.fps),
        "frames": count,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "cpu_ms_per_frame": per_frame,
        "merge_ms_per_frame": round(2 * per_frame["read"] + per_frame["track"] + per_frame["write"], 2),
        # a run reads its source twice: for the faces, then for the frames
        "cpu_s_per_s": round((per_frame["read"] + sum(per_frame.values())) * float(info.fps) / 1000, 3),
        "load_cpu_seconds": round(load, 2),
        "bytes_per_frame": {
            "source file": round(clip.stat().st_size / info.frames),
            "output file": round(size / count),
            "decoded": info.width * info.height * 3,
            "patch": round(float(np.mean(patches))),
            "crop": models.resolution**2 * 3,
        },
    }


def operations(side: int, settings: Settings) -> dict[str, float]:
    """TF (1e12 operations; a multiply and an add are two) for a second of 25 fps video at 1.5's and 1.6's shape."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    def counted(work: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops() / 1e12 / float(WINDOW / FPS)

    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        unet, vae = UNet(UNetConfig()), cast(Any, AutoencoderKL(**shape))
        latents = (WINDOW, 4, side // 8, side // 8)
        sample, audio = torch.empty(1, 13, WINDOW, *latents[2:]), torch.empty(1, WINDOW, 50, 384)
        unet_once = counted(lambda: unet(sample, 0.0, audio))
        encode = counted(lambda: vae.encode(torch.empty(WINDOW, 3, side, side)))
        decode = counted(lambda: vae.decode(torch.empty(latents)))
    branches = 1 if settings.guidance == 1 else 2
    parts = {"unet": settings.steps * branches * unet_once, "encode, twice": 2 * encode, "decode": decode}
    return {name: round(value, 1) for name, value in (parts | {"all": sum(parts.values())}).items()}


def listed(count: int, folder: Path) -> dict[str, float]:
    """CPU microseconds a job: reading and checking a list of so many, and their keys."""
    for number in range(count):
        (folder / f"{number}.mp4").touch()
    path = folder / "jobs.csv"
    path.write_text("video,out\n" + "".join(f"{n}.mp4,out{n}.mp4\n" for n in range(count)), encoding="utf-8")
    read, jobs = cpu(lambda: read_jobs(path))
    keys, _ = cpu(lambda: [job.key({"checkpoint": "nano"}) for job in jobs])
    return {"jobs": count, "check_us": round(read / count * 1e6, 1), "key_us": round(keys / count * 1e6, 1)}


def voice(seconds: Fraction) -> torch.Tensor:
    """The sample voice, repeated, as long as the frames."""
    sound = load_audio(VOICE).waveform
    length = round(seconds * SAMPLE_RATE)
    return torch.cat(list(islice(cycle([sound]), length // len(sound) + 1)))[:length]


def rendered(frames: list[np.ndarray], speech: torch.Tensor, fps: Fraction, models: Models, settings: Settings) -> Any:
    with cpu_clock():
        return lipsync(frames, speech, SAMPLE_RATE, fps, models=models, settings=replace(settings, fit="silence"))


def write_video(out: Path, frames: np.ndarray, fps: Fraction) -> int:
    with VideoWriter(out, frames.shape[2], frames.shape[1], fps) as writer:
        for frame in frames:
            writer.write(frame)
    return out.stat().st_size


def table(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['machine']}; torch {facts['torch']}, one thread, fp32; nano, {facts['steps']} steps,"
        f" guidance {facts['guidance']}",
        f"{facts['clip']}: {facts['frames']} frames of {facts['size'][0]} × {facts['size'][1]} at {facts['fps']} fps",
        *(f"  {name:8} {spent:8.1f} ms of CPU a frame" for name, spent in facts["cpu_ms_per_frame"].items()),
        f"  {facts['cpu_s_per_s']:.2f} s of CPU per second of video; loading {facts['load_cpu_seconds']} s",
        f"  a segmented run's merging process: {facts['merge_ms_per_frame']:.1f} ms a frame",
        *(f"  {name:12} {size / 1000:9.1f} kB a frame" for name, size in facts["bytes_per_frame"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, nargs="?", help="a video with a face")
    parser.add_argument("--count", action="store_true", help="count operations instead")
    parser.add_argument("--list", type=int, metavar="JOBS", help="measure a list of jobs instead")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(steps=arguments.steps, guidance=arguments.guidance)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.count:
            facts: dict[str, Any] = {f"{side} px": operations(side, settings) for side in (256, 512)}
        elif arguments.list:
            facts = listed(arguments.list, Path(folder))
        else:
            facts = measure(arguments.clip or parser.error("give a clip"), arguments.frames, settings, Path(folder))
            facts |= {"machine": platform.machine(), "torch": torch.__version__}
    print(table(facts) if "clip" in facts else json.dumps(facts, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

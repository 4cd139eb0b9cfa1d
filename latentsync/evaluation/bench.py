"""How long a lip sync takes here and what it holds, stage by stage, on a clip that is made for it."""

import re
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..audio.load import load_audio
from ..audio.mel import SAMPLE_RATE
from ..errors import UserError
from ..media.image import read_image
from ..media.writer import VideoWriter
from ..models.device import short_name
from ..pipeline import Report, lipsync_file
from ..settings import WINDOW, Progress, ProgressCallback, Settings
from ..timeline import windows
from ..weights.bundle import Models, load_models
from ..weights.registry import ASSETS
from .full_size import at_resolution, full_models
from .meters import Memory, cpu_seconds, kernel_seconds, machine, megabytes, vram, waiting, watched_stages

SCHEMA = 1
"""Of the JSON; goes up when a key changes its meaning."""
FULL = "full"
RANDOM = "random weights: speed only"
FPS = 25
SIZES = {"480p": (854, 480), "720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440), "4k": (3840, 2160)}
STAGES = ("read", "track", "crop", "encode", "hear", "sample", "decode", "paste", "write", "other")
"""In the order of the work. "other" is what lies between: opening the files, closing the output."""
SWAY = 0.06
"""How far the portrait moves to each side, as a share of its own width; it is back after eight seconds."""


@dataclass(frozen=True)
class Plan:
    """What is measured. model: "nano", "full", a known name or a file. size: (width, height) of the clip.

    resolutions: of the crops; empty is the model's own, 256 with "full". modes: of Settings; empty is the usual one.
    seconds, steps: 0 is what suits the device. device and dtype are picked already.
    """

    model: str = "nano"
    resolutions: tuple[int, ...] = ()
    modes: tuple[str, ...] = ()
    size: tuple[int, int] = SIZES["1080p"]
    seconds: float = 0.0
    steps: int = 0
    guidance: float = 0.0
    window_batch: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.seconds and not 0.04 <= self.seconds <= 600:
            raise UserError(f"--seconds is {self.seconds:g}; it must be between 0.04 (a frame) and 600.")
        if self.resolutions and self.model == "nano":
            raise UserError("--resolution goes with --model full; nano has but one.")
        if len(self.resolutions) > 1 and self.model != FULL:
            raise UserError(f"{self.model} has one resolution; give one --resolution, or take --model full.")
        for side in self.resolutions:
            if not 64 <= side <= 1024 or side % 64:
                raise UserError(f"--resolution is {side}; it must be a multiple of 64, from 64 to 1024.")
        for mode in self.modes:
            self.settings(mode)

    @property
    def slow(self) -> bool:
        """Whether a second of video would take this device many minutes."""
        return self.device == "cpu" and self.model != "nano"

    @property
    def frames(self) -> int:
        return max(1, round(self.seconds * FPS)) if self.seconds else WINDOW if self.slow else 100

    @property
    def short_frames(self) -> int:
        """Of a clip of just as many windows as are computed together."""
        return min(self.frames, WINDOW * self.window_batch)

    def settings(self, mode: str = "") -> Settings:
        """UserError for a mode that Settings does not know."""
        asked: dict[str, Any] = {"mode": mode} if mode else {}
        if mode and "mode" not in {field.name for field in fields(Settings)}:
            raise UserError(f"There is no mode {mode!r}: this version has no modes; leave --modes out.")
        steps = self.steps or (1 if self.slow else 0)
        return Settings(steps=steps, guidance=self.guidance, window_batch=self.window_batch, fit="trim", **asked)


def parse_size(text: str) -> tuple[int, int]:
    """ "1080p" or "1080x1920", width first."""
    found = re.fullmatch(r"(\d{2,5})[x×](\d{2,5})", text.strip().lower())
    if found is None and text.strip().lower() not in SIZES:
        raise UserError(f"--size is {text!r}; it must be one of {', '.join(SIZES)}, or like 1080x1920.")
    size = (int(found[1]), int(found[2])) if found else SIZES[text.strip().lower()]
    if not all(128 <= side <= 7680 for side in size):
        raise UserError(f"--size is {text!r}; both sides must be between 128 and 7680.")
    return size


def write_clip(folder: Path, size: tuple[int, int], frames: int) -> tuple[Path, Path]:
    """The built-in portrait, swaying before a gray wall, and the built-in voice, repeated to the same length."""
    import cv2

    (width, height), picture, voice = size, folder / f"clip{frames}.mp4", folder / f"voice{frames}.wav"
    side = min(width, height)
    portrait = cv2.resize(read_image(ASSETS / "portrait.jpg"), (side, side), interpolation=cv2.INTER_CUBIC)
    with VideoWriter(picture, width, height, Fraction(FPS), crf=18) as writer:
        for i in range(frames):
            shift = SWAY * side * np.sin(2 * np.pi * i / (8 * FPS))
            matrix = np.array([[1, 0, (width - side) / 2 + shift], [0, 1, (height - side) / 2]], np.float64)
            border: Any = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (96, 96, 96)}
            writer.write(cv2.warpAffine(portrait, matrix, (width, height), **border))
    sound = load_audio(ASSETS / "voice.flac").waveform.numpy()
    samples = np.resize(sound, frames * SAMPLE_RATE // FPS)
    with wave.open(str(voice), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return picture, voice


def run_bench(plan: Plan, folder: Path, on_run: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Everything that the plan asks for, in order. folder: for the clip and the results. on_run: told what begins."""
    facts = machine(plan.device)
    on_run("making the clip")
    clip = write_clip(folder, plan.size, plan.frames)
    short = write_clip(folder, plan.size, plan.short_frames)
    on_run(f"loading {plan.model}")
    wait = waiting(plan.device)
    if plan.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(plan.device)
    start, cpu = time.perf_counter(), cpu_seconds()
    with Memory() as memory:
        loaded = _load(plan)
        wait()
    load = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(cpu_seconds() - cpu, 3),
        "peak_rss_mb": megabytes(memory.peak),
        "peak_vram_mb": vram(plan.device),
        "unet_numbers": sum(p.numel() for p in loaded.unet.parameters()),
        "vae_numbers": sum(p.numel() for p in loaded.vae.parameters()),
    }
    runs = []
    with loaded:
        for resolution in plan.resolutions or (loaded.resolution,):
            models = at_resolution(loaded, resolution) if plan.model == FULL else loaded
            for mode in plan.modes or ("",):
                on_run(" ".join((plan.model, f"{resolution} px", mode)).strip())
                runs.append(measure(plan, mode, models, clip, short))
    return {
        "schema": SCHEMA,
        "machine": facts,
        "device": plan.device,
        "dtype": short_name(plan.dtype),
        "model": plan.model,
        "weights": RANDOM if plan.model == FULL else "real",
        "clip": {"size": list(plan.size), "frames": plan.frames, "fps": FPS, "seconds": plan.frames / FPS},
        "load": load,
        "runs": runs,
    }


def _load(plan: Plan) -> Models:
    if plan.model == FULL:
        return full_models(plan.device, plan.dtype, resolution=plan.resolutions[0] if plan.resolutions else 256)
    side = plan.resolutions[0] if plan.resolutions else None
    return load_models(plan.model, device=plan.device, dtype=plan.dtype, resolution=side)


def measure(plan: Plan, mode: str, models: Models, clip: tuple[Path, Path], short: tuple[Path, Path]) -> dict[str, Any]:
    """One row. On a card: a short run to warm up, one by the clock, one that waits after every stage to tell them
    apart, and a short one in which kernels are counted. On a CPU the run by the clock says all, and is the first."""
    settings, wait = plan.settings(mode), waiting(plan.device)
    out = clip[0].with_name("out.mp4")

    def run(files: tuple[Path, Path], on_step: ProgressCallback | None = None) -> Report:
        report = lipsync_file(*files, out, models=models, settings=settings, on_step=on_step)
        wait()
        return report

    if plan.device == "cpu":
        row, report = _by_the_clock(plan.device, lambda on_step: run(clip, on_step))
        stages, together = dict(report.timings), row["seconds"]
        idle = 1 - row["cpu_seconds"] / (together * torch.get_num_threads())
    else:
        start = time.perf_counter()
        run(short)
        warm_up = time.perf_counter() - start
        row, report = _by_the_clock(plan.device, lambda on_step: run(clip, on_step))
        row["warm_up_seconds"] = round(warm_up, 3)
        start = time.perf_counter()
        with watched_stages(wait) as seen:
            stages = dict(run(clip).timings)
        row["stages_cpu"] = _ordered(seen.cpu, row["cpu_seconds"])
        together, idle = time.perf_counter() - start, None
    if plan.device.startswith("cuda"):
        busy = kernel_seconds(lambda: run(short)) / len(windows(0, plan.short_frames))
        idle = 1 - busy * row["windows"] / row["seconds"]
    return row | {
        "mode": mode or getattr(report.settings, "mode", ""),
        "resolution": models.resolution,
        "guidance": report.settings.guidance,
        "window_batch": plan.window_batch,
        "idle_share": None if idle is None else round(min(1.0, max(0.0, idle)), 3),
        "stages": _ordered(stages, together),
    }


def _by_the_clock(device: str, run: Callable[[ProgressCallback], Report]) -> tuple[dict[str, Any], Report]:
    """Figures of one run from file to file, without any waiting that is not part of it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    steps = list[int]()

    def on_step(step: Progress) -> None:
        if step.stage == "sample":
            steps.append(step.total)

    start, cpu = time.perf_counter(), cpu_seconds()
    with Memory() as memory, watched_stages() as seen:
        report = run(on_step)
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    count = len(windows(0, report.frames))
    return {
        "steps": round(max(steps, default=0) / count, 2),
        "windows": count,
        "frames": report.frames,
        "repainted": report.repainted,
        "seconds": round(wall, 3),
        "seconds_per_second": round(wall * FPS / report.frames, 3),
        "first_frame_seconds": round(seen.begun["write"] - start, 3),
        "warm_up_seconds": None,
        "cpu_seconds": round(cpu, 3),
        "cpu_seconds_per_second": round(cpu * FPS / report.frames, 3),
        "stages_cpu": _ordered(seen.cpu, cpu),
        "peak_rss_mb": megabytes(memory.peak),
        "peak_vram_mb": vram(device),
    }, report


def _ordered(stages: dict[str, float], wall: float) -> dict[str, float]:
    """In the order of the work; where stages overlap, there is no "other"."""
    stages = stages | {"other": max(0.0, wall - sum(stages.values()))}
    order = {name: i for i, name in enumerate(STAGES)}
    return {name: round(stages[name], 3) for name in sorted(stages, key=lambda name: order.get(name, len(order) - 1.5))}


def tables(facts: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The runs, and the milliseconds of each stage for a frame; the first row of each is the titles."""
    titles = ["px", "mode", "steps", "guidance", "windows", "s per s of video", "CPU s per s", "first frame", "idle"]
    rows, stages = (
        [[*titles, "RAM", "VRAM"]],
        list(dict.fromkeys(name for run in facts["runs"] for name in run["stages"])),
    )
    for run in facts["runs"]:
        card, memory, idle = run["peak_vram_mb"], run["peak_rss_mb"], run["idle_share"]
        rows.append(
            [
                str(run["resolution"]),
                run["mode"] or "–",
                f"{run['steps']:g}",
                f"{run['guidance']:g}",
                str(run["windows"]),
                f"{run['seconds_per_second']:.2f}",
                f"{run['cpu_seconds_per_second']:.2f}",
                f"{run['first_frame_seconds']:.2f} s",
                "–" if idle is None else f"{100 * idle:.0f} %",
                "–" if memory is None else f"{memory:,} MB",
                "–" if card is None else f"{card['allocated']:,} ({card['reserved']:,}) MB",
            ]
        )
    split = [["ms a frame", *(title for run in facts["runs"] for title in (name_of(run), "of CPU"))]]
    for stage in stages:
        spent = (
            run[kind].get(stage, 0.0) / run["frames"] for run in facts["runs"] for kind in ("stages", "stages_cpu")
        )
        split.append([stage, *(f"{1000 * each:.1f}" for each in spent)])
    return rows, split


def name_of(run: dict[str, Any]) -> str:
    return f"{run['resolution']} px {run['mode']}".strip()

"""Times and memory of a whole run, stage by stage: python -m benchmarks.pipeline [--clip FILE] [--json FILE]

Without media of one's own: the astronaut portrait of scikit-image says the sample voice. Stages are the engine's own
(Report.timings); "other" is what lies between them. Memory is the peak of the whole process.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.cli.contact_sheet import write_picture
from latentsync.models.device import pick_device, pick_dtype, short_name
from latentsync.pipeline import lipsync_file
from latentsync.settings import GUIDANCE, STEPS, Settings
from latentsync.weights.bundle import load_models

VOICE = Path(__file__).resolve().parents[1] / "latentsync" / "assets" / "voice.flac"


def peak_megabytes() -> float:
    """Of this process so far; Linux counts in kB, macOS in bytes, Windows has no such count."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    face, settings = arguments.clip or portrait(folder), chosen(arguments)
    device = pick_device(arguments.device)
    dtype = pick_dtype(arguments.dtype, device)
    start, cpu = time.perf_counter(), time.process_time()
    with load_models(arguments.checkpoint, device=device, dtype=dtype) as models:
        load, before = time.perf_counter() - start, peak_megabytes()
        report = lipsync_file(face, arguments.audio, folder / "out.mp4", models=models, settings=settings)
    total = time.perf_counter() - start
    stages = {"load": load, **report.timings}
    stages["other"] = total - sum(stages.values())
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": short_name(dtype),
        "checkpoint": report.checkpoint,
        "resolution": models.resolution,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "frames": report.frames,
        "size": list(report.size),
        "seconds": {name: round(value, 3) for name, value in stages.items()},
        "total_seconds": round(total, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_mb": {"after loading": round(before), "at the end": round(peak_megabytes())},
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6) if device == "cuda" else None,
    }


def portrait(folder: Path) -> Path:
    from skimage import data

    path = folder / "face.png"
    write_picture(path, data.astronaut())
    return path


def chosen(arguments: argparse.Namespace) -> Settings:
    names = [field.name for field in fields(Settings) if hasattr(arguments, field.name)]
    return Settings(**{name: getattr(arguments, name) for name in names})


def table(facts: dict[str, Any]) -> str:
    frames, total = facts["frames"], facts["total_seconds"]
    lines = [
        f"{facts['machine']}; torch {facts['torch']}; {facts['device']}, {facts['dtype']}",
        f"{facts['checkpoint']} at {facts['resolution']} px, {facts['steps']} steps, guidance {facts['guidance']};"
        f" {frames} frames of {facts['size'][0]} × {facts['size'][1]}",
        f"{'stage':10} {'seconds':>9} {'ms/frame':>9} {'share':>6}",
    ]
    for name, value in (facts["seconds"] | {"all": total}).items():
        lines.append(f"{name:10} {value:9.2f} {1000 * value / frames:9.1f} {100 * value / total:5.0f}%")
    memory = ", ".join(f"{value} MB {when}" for when, value in facts["peak_mb"].items())
    gpu = f", GPU {facts['gpu_peak_mb']} MB" if facts["gpu_peak_mb"] else ""
    return "\n".join([*lines, f"CPU time {facts['cpu_seconds']:.1f} s; peak memory {memory}{gpu}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a video or picture with a face")
    parser.add_argument("--audio", type=Path, default=VOICE)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--window-batch", type=int, default=Settings.window_batch)
    parser.add_argument("--threads", type=int, help="of torch; its own choice without")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(arguments, Path(folder))
    print(table(facts))
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

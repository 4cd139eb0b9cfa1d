"""How fast footage is prepared: python -m benchmarks.prepare FOLDER [--only PATTERN] [--workers N] [--ray] [--json]

Prepares into a temporary folder, without quality, and without sync unless a SyncNet is given. Reports seconds of video
per second and per second of CPU (the latter holds on a busy machine too), the cost of each step per second of video
(CPU time with one worker, else wall clock), and the disk space. waiting_share: the share of the workers' time in which
no step runs (they start, load models, or have no item). idle_cpu_share: the share in which they do not compute.
repeat_s: the second run over the same folder, which has nothing to do.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.prepare import steps as steps_module
from latentsync.prepare.local import run_local
from latentsync.prepare.runner import Execute, Report, prepare
from latentsync.prepare.settings import STEPS, PrepareSettings


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def executor(workers: int, ray: bool) -> Execute:
    if not ray:
        return lambda plan, kind, items: run_local(plan, kind, items, workers)
    from latentsync.prepare.ray_data import run_ray

    return lambda plan, kind, items: run_ray(plan, kind, items, workers, None)


def run_timed(
    folder: Path, out: Path, settings: PrepareSettings, args: argparse.Namespace
) -> tuple[Report, float, float]:
    start, cpu = time.perf_counter(), cpu_seconds()
    report = prepare(folder, out, settings, executor(args.workers, args.ray), only=args.only, threads=1)
    return report, time.perf_counter() - start, cpu_seconds() - cpu


def measure(args: argparse.Namespace, settings: PrepareSettings, out: Path) -> dict[str, Any]:
    report, wall, cpu = run_timed(args.folder, out, settings, args)
    again, second, _ = run_timed(args.folder, out, settings, args)
    seconds = sum((r["stop"] or 0) - r["start"] for r in report.records)
    kept = sum(r["stop"] - r["start"] for r in report.kept)
    worked = args.workers * wall
    steps = sum(report.timings.values())
    return {
        "video_s": round(seconds, 1),
        "kept_s": round(kept, 1),
        "elapsed_s": round(wall, 1),
        "speed": round(seconds / wall, 3),
        "speed_per_cpu": None if args.ray else round(seconds / cpu, 3),
        "timings_per_video_s": {
            name: round(report.timings.get(name, 0.0) / seconds, 4) for name in STEPS if name in report.timings
        },
        "waiting_share": round(1 - steps / (cpu if args.workers == 1 else worked), 3),
        "idle_cpu_share": None if args.ray else round(max(0.0, 1 - cpu / worked), 3),
        "repeat_s": round(second, 1),
        "repeat_steps": len(again.timings),
        "clips_mb_per_hour": round(disk_bytes(out / "clips") / 2**20 / kept * 3600),
        "work_mb_per_hour": round(disk_bytes(out / "work") / 2**20 / seconds * 3600),
        "workers": args.workers,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--min-seconds", type=float, default=2.0)
    parser.add_argument("--syncnet", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    skip = ("quality",) if args.syncnet else ("quality", "sync")
    settings = PrepareSettings(
        resolution=args.resolution, min_seconds=args.min_seconds, syncnet=args.syncnet, min_confidence=0.0, skip=skip
    )
    if args.workers == 1 and not args.ray:
        steps_module.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, settings, Path(folder))
    if args.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{name.replace('_', ' '):32}{value}")


if __name__ == "__main__":
    main()

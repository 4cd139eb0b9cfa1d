"""`latentsync batch`: many jobs, here or on a Ray cluster."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from . import console
from .console import check_writable, note, show_table, write_json
from .options import ModelOptions
from .parameters import choice, expand_options

if TYPE_CHECKING:
    from ..batch.parallel.dispatch import Pool
    from ..batch.results import JobResult
    from ..batch.worker import ModelSpec

FAILED = 1
"""Exit code: some jobs failed."""

ACTORS_GET = ("LATENTSYNC_MODELS", "OMP_WAIT_POLICY")
"""Variables of this process that actors on other machines get too."""

WHAT, WHERE = "What runs", "Where it runs"


@dataclass(frozen=True)
class RunOptions:
    out: Path | None = choice(
        None, "--out -o", None, "Where outputs go; created if missing.", "FOLDER", show_default="the list's folder"
    )
    segment_seconds: float | None = choice(
        WHAT, "", None, "Split each video into segments across all workers: for a few long videos.", "SECONDS", min=0.1
    )
    overwrite: bool = choice(WHAT, "--overwrite", False, "Also redo jobs that an earlier run has finished.")
    retries: int = choice(WHAT, "", 2, "How often a job is retried when its worker dies.", min=0)
    json: Path | None = choice(
        WHAT, "", None, "The report; next to it, REPORT.jsonl records what the next run skips.", "REPORT.json",
        show_default="<list>.report.json with the outputs",
    )  # fmt: skip


@dataclass(frozen=True)
class WorkerOptions:
    workers: int | None = choice(
        WHERE, "", None, "Processes, or Ray actors.", min=1, show_default="1; with --ray as many as fit"
    )
    ray: bool = choice(WHERE, "--ray", False, "Run on Ray: the cluster of RAY_ADDRESS, else this machine.")
    ray_address: str | None = choice(WHERE, "", None, "Run on this Ray cluster (auto, or host:port).", "ADDRESS")
    gpus_per_worker: float | None = choice(
        WHERE, "", None, "Ray: 0.5 puts two workers on a GPU.", min=0.0, show_default="1 if there are GPUs"
    )
    cpus_per_worker: int | None = choice(
        WHERE, "", None, "Cores, and therefore threads, per worker.", min=1,
        show_default="those of a single run, divided among processes; 1 with a GPU",
    )  # fmt: skip


@expand_options
def batch(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="A list of jobs: .csv with a header line, or .jsonl.")],
    run: RunOptions,
    where: WorkerOptions,
    models: ModelOptions,
) -> None:
    """Make many videos: models load once, a failed job does not stop the rest, and a second run resumes.

    The list has a line for each job: video (or picture), audio (default: the video's own) or speakers
    ("left=anna.wav; right=ben.wav@3.5", in .jsonl a list), out, and any of the settings steps, guidance, solver, seed,
    fit, face, window_batch, still_fps, watermark, max_side, background, strip_metadata, codec, quality, pixel_format,
    audio_track, silence, spans, points, no_face; `run --help` explains them.

    \b
      video,audio,out,steps
      anna.mp4,hello.wav,anna_hello.mp4,20
      face.png,speech.mp3,face.mp4,

    \b
      latentsync batch jobs.csv --out results
      latentsync batch jobs.csv --out results -c 1.5 --ray-address auto \\
          --gpus-per-worker 0.5

    Exit code 1: some jobs failed; the report says why.
    """
    from ..batch.jobs import read_jobs
    from ..batch.results import ResultsLog
    from ..batch.runner import Batch
    from ..batch.worker import ModelSpec
    from ..weights.load import default_settings
    from ..weights.lora import split_strength

    listed = read_jobs(jobs, run.out, default_settings(models.checkpoint))
    report_path = _report_path(jobs, run)
    options: dict[str, Any] = asdict(models)
    files: dict[str, Any] = {
        n: str(Path(v).resolve()) for n, v in options.items() if isinstance(v, str) and Path(v).is_file()
    }
    files["lora"] = tuple(f"{path.resolve()}:{strength:g}" for path, strength in map(split_strength, models.lora))
    spec = ModelSpec(**options | files)  # absolute paths: workers may run in another folder
    log, start = ResultsLog(report_path.with_suffix(".jsonl")), time.perf_counter()
    limit = None if run.segment_seconds else len(listed)
    make_pool = _ray_pool if where.ray or where.ray_address is not None else _local_pool
    with closing(make_pool(spec, where, limit)) as pool:
        batch = Batch(spec, run.retries, run.segment_seconds, run.overwrite)
        results = batch.run(listed, pool, log, partial(_show_job, count(1), len(listed)))
    _show(results, report_path, time.perf_counter() - start)
    if any(result["status"] == "failed" for result in results):
        raise typer.Exit(FAILED)


def _report_path(jobs: Path, run: RunOptions) -> Path:
    folder = jobs.parent if run.out is None else run.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder ({error.strerror}); give another --out.") from error
    path = run.json or folder / f"{jobs.stem}.report.json"
    if path.suffix.lower() != ".json":
        raise UserError(f"--json is {path}; its name must end in .json.")
    check_writable(path)
    return path


def _local_pool(spec: "ModelSpec", where: WorkerOptions, limit: int | None) -> "Pool":
    """limit: workers that have something to do."""
    from ..batch.parallel.processes import InProcessPool, ProcessPool
    from ..batch.worker import LipSyncWorker

    if where.gpus_per_worker is not None:
        raise UserError("--gpus-per-worker needs --ray; without it every worker uses the GPU that --device names.")
    workers = where.workers or 1
    workers = min(workers, limit or workers)
    if workers == 1 and where.cpus_per_worker is None:
        return InProcessPool(spec, LipSyncWorker)
    import torch

    threads = where.cpus_per_worker or max(1, torch.get_num_threads() // workers)
    return ProcessPool(replace(spec, threads=threads), workers, LipSyncWorker)


def _ray_pool(spec: "ModelSpec", where: WorkerOptions, limit: int | None) -> "Pool":
    import torch

    from ..batch.parallel.ray_pool import RayPool, capacity, connect, has_free_resources, worker_resources
    from ..batch.worker import LipSyncWorker

    connect(where.ray_address)
    gpus, cpus = worker_resources(where.gpus_per_worker, where.cpus_per_worker, spec.device, torch.get_num_threads())
    if not has_free_resources(gpus, cpus):
        note("the cluster is busy: workers start when others end")
    workers = where.workers or max(1, capacity(gpus, cpus))
    spec, workers = replace(spec, threads=cpus), min(workers, limit or workers)
    return RayPool(spec, workers, LipSyncWorker, gpus=gpus, cpus=cpus, environment=ACTORS_GET)


def _show_job(numbers: Iterator[int], total: int, result: "JobResult") -> None:
    message = {
        "done": f"{result.get('frames')} frames in {result.get('elapsed_s', 0):.1f} s",
        "skipped": "done before",
        "failed": f"failed: {result.get('error')}",
    }[result["status"]]
    line = f"{next(numbers)}/{total} {Path(result['out']).name}: {message}"
    typer.echo(line, err=True) if result["status"] == "failed" else note(line)


def _show(results: "list[JobResult]", path: Path, elapsed_s: float) -> None:
    from ..batch.results import TITLES, cells, footer, summary

    totals = summary(results, elapsed_s)
    write_json(path, {"summary": totals, "jobs": results})
    if not console.quiet:
        show_table([cells(result) for result in results], TITLES)
        typer.echo(f"{footer(totals)}\nreport: {path}")

"""`latentsync batch`: many jobs, here or on a Ray cluster. It parses, calls apps/batch.py and prints."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import UserError
from . import options

if TYPE_CHECKING:
    from ..batch.parallel.processes import Pool
    from ..batch.results import Row
    from ..batch.worker import ModelSpec

FAILED = 1
"""Exit code: some jobs could not be done."""

_WHAT, _WHERE = "What runs", "Where it runs"

Jobs = Annotated[Path, typer.Argument(metavar="JOBS", help="A list of jobs: .csv with a header line, or .jsonl.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Where outputs go; made when absent.", show_default="the list's folder"
    ),
]
Split = Annotated[
    float | None,
    typer.Option(
        "--split",
        metavar="SECONDS",
        min=0.1,
        help="Spread each video over all workers, in segments of so many seconds: for a few long ones.",
        rich_help_panel=_WHAT,
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Also redo what an earlier run has done.", rich_help_panel=_WHAT)]
Retries = Annotated[
    int, typer.Option(min=0, help="How often a job is tried again when its worker dies.", rich_help_panel=_WHAT)
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.json",
        help="The report; beside it, in FILE.jsonl, what a next run skips.",
        show_default="<list>.report.json with the outputs",
        rich_help_panel=_WHAT,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes, or actors of Ray.", show_default="1; with --ray what fits", rich_help_panel=_WHERE
    ),
]
Ray = Annotated[
    bool,
    typer.Option("--ray", help="Run on Ray: the cluster of RAY_ADDRESS, else this machine.", rich_help_panel=_WHERE),
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run on this Ray cluster (auto, or host:port).", rich_help_panel=_WHERE),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        min=0.0,
        help="Ray: 0.5 puts two workers on a card.",
        show_default="1 where there are GPUs",
        rich_help_panel=_WHERE,
    ),
]
Cpus = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker",
        min=1,
        help="Cores of a worker, and threads it computes with.",
        show_default="those of a plain run, shared out among processes; 1 beside a GPU",
        rich_help_panel=_WHERE,
    ),
]


def batch(
    jobs: Jobs,
    out: Out = None,
    split: Split = None,
    again: Again = False,
    retries: Retries = 2,
    report: Report = None,
    workers: Workers = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    gpus_per_worker: Gpus = None,
    cpus_per_worker: Cpus = None,
    checkpoint: options.Checkpoint = "nano",
    resolution: options.Resolution = None,
    vae: options.Vae = None,
    whisper: options.Whisper = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Make many videos: the models are loaded once, a job that fails does not stop the rest, a second run goes on.

    The list has a line for each job: video (or picture), audio (else the video's own), out, and any of the settings
    steps, guidance, solver, seed, fit, face, paste, window_batch, still_fps, mark; `run --help` explains them.

    \b
      video,audio,out,steps
      anna.mp4,hello.wav,anna_hello.mp4,20
      face.png,speech.mp3,face.mp4,

    \b
      latentsync batch jobs.csv --out results
      latentsync batch jobs.csv --out results --ray-address auto --gpus-per-worker 0.5 -c 1.5

    Exit code 1: some jobs failed; the report says why.
    """
    from ..batch.jobs import read_jobs
    from ..batch.results import Records
    from ..batch.runner import Batch
    from ..batch.worker import ModelSpec
    from ..weights.load import default_settings

    listed = read_jobs(jobs, out, default_settings(checkpoint))
    place = _report_place(jobs, out, report)
    spec = ModelSpec(_known(checkpoint), _known(vae), _known(whisper), resolution, device, dtype)
    records, start = Records(place.with_suffix(".jsonl")), time.perf_counter()
    asked = _Asked(workers, ray or ray_address is not None, ray_address, gpus_per_worker, cpus_per_worker)
    with _pool(spec, asked, most=None if split else len(listed)) as pool:
        done = Batch(spec, retries, split, again).run(listed, pool, records, _Line(len(listed)))
    _show(done, place, time.perf_counter() - start)
    if any(row["status"] == "failed" for row in done):
        raise typer.Exit(FAILED)


class _Asked(NamedTuple):
    workers: int | None
    ray: bool
    address: str | None
    gpus: float | None
    cpus: int | None


def _known(name: Any) -> Any:
    """A file by its full path: workers may stand in another folder."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_file() else name


def _report_place(jobs: Path, out: Path | None, report: Path | None) -> Path:
    folder = jobs.parent if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder ({error.strerror}); give another --out.") from error
    place = folder / f"{jobs.stem}.report.json" if report is None else report
    if place.suffix.lower() != ".json":
        raise UserError(f"--report is {place}; its name must end in .json.")
    if place.is_dir() or not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise UserError(f"{place} cannot be written there; name a file in a folder that can be written to.")
    return place


@contextmanager
def _pool(spec: "ModelSpec", asked: _Asked, most: int | None) -> Iterator["Pool"]:
    """The workers that were asked for, no more than there are jobs."""
    pool = _ray_pool(spec, asked, most) if asked.ray else _local_pool(spec, asked, most)
    try:
        yield pool
    finally:
        pool.close()


def _local_pool(spec: "ModelSpec", asked: _Asked, most: int | None) -> "Pool":
    from dataclasses import replace

    from ..batch.parallel.processes import Here, Processes

    if asked.gpus is not None:
        raise UserError("--gpus-per-worker goes with --ray; without it every worker uses the card that --device names.")
    number = min(asked.workers or 1, most or asked.workers or 1)
    if number == 1 and asked.cpus is None:
        return Here(spec)
    import torch

    return Processes(replace(spec, threads=asked.cpus or max(1, torch.get_num_threads() // number)), number)


def _ray_pool(spec: "ModelSpec", asked: _Asked, most: int | None) -> "Pool":
    from dataclasses import replace

    import torch

    from ..batch.distributed import RayPool, connect, idle, room, share_of_node

    connect(asked.address)
    gpus, cpus = share_of_node(asked.gpus, asked.cpus, spec.device, torch.get_num_threads())
    if not idle(gpus, cpus):
        typer.echo("the cluster is busy: workers start when others end", err=True)
    number = asked.workers or max(1, room(gpus, cpus))
    return RayPool(replace(spec, threads=cpus), min(number, most or number), gpus=gpus, cpus=cpus)


class _Line:
    """Says a line for each job as it ends."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, row: "Row") -> None:
        self.count += 1
        said = {
            "done": f"{row.get('frames')} frames in {row.get('wall_seconds', 0):.1f} s",
            "skipped": "done before",
            "failed": f"failed: {row.get('error')}",
        }[row["status"]]
        typer.echo(f"{self.count}/{self.total} {Path(row['out']).name}: {said}", err=True)


def _show(rows: "list[Row]", place: Path, wall: float) -> None:
    from ..batch.results import TITLES, summary, table, tail
    from .console import show_table, write_json

    totals = summary(rows, wall)
    show_table(table(rows), TITLES)
    typer.echo(tail(totals))
    facts: dict[str, Any] = {"summary": totals, "jobs": rows}
    write_json(place, facts)
    typer.echo(f"report: {place}")

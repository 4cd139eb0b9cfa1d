"""Many jobs on one or many workers: what is done already is skipped, what fails does not stop the rest."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .jobs import Job
from .parallel.processes import Pool, spread
from .results import Records, Row
from .worker import Call, ModelSpec, Outcome, SetupError, sentence

OnRow = Callable[[Row], None]
SPLIT = "split"
"""Stands for the worker of a job that all of them made together."""


@dataclass(frozen=True)
class Batch:
    """How a list is run. split: seconds of video in a segment, None leaves jobs whole. again: redo what is done."""

    spec: ModelSpec
    retries: int = 2
    split: float | None = None
    again: bool = False

    def run(self, jobs: Sequence[Job], pool: Pool, records: Records, on_row: OnRow | None = None) -> list[Row]:
        """A row for every job, in the list's order; on_row and the records learn of each as soon as it is known.

        UserError when the workers cannot load the models, or the records cannot be written.
        """
        rows: dict[int, Row] = {}
        models, todo = self.spec.facts(), []
        for job in jobs:
            key = job.key(models)
            before = None if self.again else records.done(job, key)
            if before is None:
                todo.append((job, key))
            else:
                rows[job.line] = before | {"line": job.line, "status": "skipped"}
                _tell(on_row, rows[job.line])
        for job, key, facts in self._made(todo, pool):
            row = _row(job, key) | facts
            if row["status"] == "done":
                row["bytes"] = job.out.stat().st_size
            records.add(row)
            rows[job.line] = row
            _tell(on_row, row)
        return [rows[job.line] for job in jobs]

    def _made(self, todo: Sequence[tuple[Job, str]], pool: Pool) -> Iterator[tuple[Job, str, dict[str, Any]]]:
        if self.split is not None:
            for job, key in todo:
                yield job, key, self._split(job, pool)
            return
        calls = [Call("run", (job,), leaves=job.out) for job, _ in todo]
        for handed, outcome in spread(calls, pool, retries=self.retries):
            yield *todo[handed.number], _facts(outcome, handed.tries)

    def _split(self, job: Job, pool: Pool) -> dict[str, Any]:
        from .segments import lipsync_split

        start = time.perf_counter()
        try:
            report = lipsync_split(
                job.video,
                job.audio,
                job.out,
                pool=pool,
                seconds=self.split or 0,
                settings=job.settings,
                retries=self.retries,
            )
        except SetupError:
            raise
        except Exception as error:
            return _facts(Outcome("failed", error=sentence(error)), 1)
        value = report.as_dict() | {"wall": time.perf_counter() - start, "load_seconds": 0.0}
        return _facts(Outcome("done", value, place=SPLIT), 1)


def _tell(on_row: OnRow | None, row: Row) -> None:
    if on_row is not None:
        on_row(row)


def _row(job: Job, key: str) -> Row:
    files = {"video": str(job.video), "audio": None if job.audio is None else str(job.audio), "out": str(job.out)}
    return {"key": key, "line": job.line} | files | {"settings": dataclasses.asdict(job.settings)}


def _facts(outcome: Outcome, tries: int) -> dict[str, Any]:
    """What a row says of how its job went.

    seconds: of compute, of all workers together, loading the models (load_seconds) not counted; wall_seconds: from its
    start to its end; stages: the engine's own; video_seconds: what was made.
    """
    row: dict[str, Any] = {"status": outcome.status, "tries": tries, "worker": outcome.place}
    if outcome.status != "done":
        return row | {"status": "failed", "error": outcome.error}
    facts = dict(outcome.value)
    stages, wall = facts.pop("seconds"), facts.pop("wall")
    made = float(facts["frames"] / Fraction(facts["fps"]))
    spent = sum(stages.values()) if outcome.place == SPLIT else wall
    for name in ("settings", "out"):
        facts.pop(name)
    times = {"video_seconds": made, "seconds": spent, "wall_seconds": wall, "seconds_per_video_second": spent / made}
    return row | facts | {name: round(value, 4) for name, value in times.items()} | {"stages": stages}

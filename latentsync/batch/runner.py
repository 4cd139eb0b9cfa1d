"""Many jobs on one or many workers. What is done already is skipped; what fails does not stop the rest."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .jobs import Job
from .parallel.dispatch import Pool, map_calls
from .parallel.worker import Call, Outcome, SetupError
from .results import JobResult, ResultsLog, short_traceback
from .worker import ModelSpec

ALL_WORKERS = "all"  # stands for the worker of a job that all of them rendered together

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """How a list is run. segment_seconds: None leaves clips whole; those with several speakers are always. overwrite:
    also redo what is done."""

    spec: ModelSpec
    retries: int = 2
    segment_seconds: float | None = None
    overwrite: bool = False

    def run(
        self, jobs: Sequence[Job], pool: Pool, log: ResultsLog, on_result: Callable[[JobResult], None] | None = None
    ) -> list[JobResult]:
        """The results in the list's order; on_result and the log get each one as soon as it is known. UserError when
        the workers cannot load the models, or the log cannot be written."""
        results: dict[int, JobResult] = {}
        models, todo = self.spec.fingerprint(), []

        def report(result: JobResult) -> None:
            results[result["line"]] = result
            if on_result is not None:
                on_result(result)

        for job in jobs:
            key = job.key(models)
            earlier = None if self.overwrite else log.finished(job, key)
            if earlier is None:
                todo.append((job, key))
            else:
                report(earlier | {"line": job.line, "status": "skipped"})
        for job, key, outcome, attempts in self._outcomes(todo, pool):
            result = _result(job, key, outcome, attempts)
            log.add(result)
            report(result)
        return [results[job.line] for job in jobs]

    def _outcomes(self, todo: Sequence[tuple[Job, str]], pool: Pool) -> Iterator[tuple[Job, str, Outcome, int]]:
        whole = [(job, key) for job, key in todo if self.segment_seconds is None or job.speakers]
        calls = [Call("run", (job,), output_path=job.out) for job, _ in whole]
        for pending, outcome in map_calls(calls, pool, retries=self.retries):
            yield *whole[pending.index], outcome, pending.attempts
        if self.segment_seconds is not None:
            for job, key in todo:
                if not job.speakers:
                    yield job, key, self._in_segments(job, pool, self.segment_seconds), 1

    def _in_segments(self, job: Job, pool: Pool, seconds: float) -> Outcome:
        from .segments import lipsync_segments

        start = time.perf_counter()
        try:
            report = lipsync_segments(
                job.video, job.audio, job.out, pool=pool, seconds=seconds, settings=job.settings, retries=self.retries
            )
        except SetupError:
            raise
        except Exception as error:
            outcome = Outcome.of_error("failed", error)
            if outcome.traceback:
                _log.error("%s failed\n%s", job.out, outcome.traceback)
            return outcome
        value = report.as_dict() | {"elapsed_s": time.perf_counter() - start, "load_s": 0.0}
        return Outcome("done", value, place=ALL_WORKERS)


def _result(job: Job, key: str, outcome: Outcome, attempts: int) -> JobResult:
    result: JobResult = {
        "key": key,
        "line": job.line,
        "video": str(job.video),
        "audio": None if job.audio is None else str(job.audio),
        "out": str(job.out),
        "settings": dataclasses.asdict(job.settings),
        "status": outcome.status,
        "attempts": attempts,
        "worker": outcome.place,
    }
    if job.speakers:
        result["speakers"] = [f"{one.face}={one.voice}@{float(one.start):g}" for one in job.speakers]
    if outcome.status != "done":
        frames = {"traceback": short_traceback(outcome.traceback)} if outcome.traceback else {}
        return result | {"status": "failed", "error": outcome.error} | frames
    report = dict[str, Any](outcome.value)
    timings, elapsed_s = report.pop("timings"), report.pop("elapsed_s")
    video_s = float(report["frames"] / Fraction(report["fps"]))
    compute_s = sum(timings.values()) if outcome.place == ALL_WORKERS else elapsed_s
    times = {"video_s": video_s, "compute_s": compute_s, "elapsed_s": elapsed_s, "realtime_factor": compute_s / video_s}
    times = {name: round(value, 4) for name, value in times.items()}
    details = {name: value for name, value in report.items() if name not in result}
    return result | details | times | {"timings": timings, "bytes": job.out.stat().st_size}

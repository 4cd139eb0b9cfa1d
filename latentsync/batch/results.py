"""What became of each job: a line as soon as it is known, so that a run can be resumed, and a report at the end."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json
from .jobs import Job

JobResult = dict[str, Any]
"""key, line, video, audio (and speakers where there are several), out, settings, status, attempts, worker; error (and
traceback) of a failed job; of the others frames, video_s (length of the result), compute_s (of all workers), elapsed_s
(by the clock), load_s, realtime_factor (compute_s / video_s), timings (seconds by stage), bytes, and what the engine
reports."""
TITLES = ("line", "out", "status", "frames", "compute s", "s per s", "attempts", "worker", "")
MAX_ERROR = 90  # characters of an error in the table
MAX_TRACEBACK = 4  # frames of a traceback in the results


class ResultsLog:
    """A .jsonl file of results, appended to one by one. A last line that was cut off is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, JobResult] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._ends_in_newline = not text or text.endswith("\n")
        for line in text.splitlines():
            with suppress(ValueError, TypeError, KeyError):
                result = parse_json(line)
                self.results[result["key"]] = result

    def finished(self, job: Job, key: str) -> JobResult | None:
        """The result of this very job if an earlier run finished it and its output is still that file."""
        result = self.results.get(key)
        if result is None or result.get("status") != "done" or not job.out.is_file():
            return None
        return result if job.out.stat().st_size == result.get("bytes") else None

    def add(self, result: JobResult) -> None:
        line = json.dumps(result, ensure_ascii=False, default=str) + "\n"
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line if self._ends_in_newline else "\n" + line)
        except OSError as error:
            raise UserError(f"{self.path} could not be written ({error.strerror}); name another --json.") from error
        self._ends_in_newline = True
        self.results[result["key"]] = result


def short_traceback(text: str) -> list[str]:
    """The innermost frames of a formatted traceback, as 'file.py:12 in function'."""
    places = [line.split(", ") for line in text.splitlines() if line.startswith('  File "') and line.count(", ") == 2]
    return [
        f"{Path(file.strip()[6:-1]).name}:{line.removeprefix('line ')} {function}"
        for file, line, function in places[-MAX_TRACEBACK:]
    ]


def summary(results: Sequence[JobResult], elapsed_s: float) -> dict[str, Any]:
    """Totals. The factors are compute and clock seconds per second of video."""
    done = [result for result in results if result["status"] == "done"]
    video_s, compute_s = (sum(result[name] for result in done) for name in ("video_s", "compute_s"))
    statuses = [result["status"] for result in results]
    return {
        "jobs": len(results),
        **{status: statuses.count(status) for status in ("done", "skipped", "failed")},
        "frames": sum(result["frames"] for result in done),
        "video_s": round(video_s, 3),
        "compute_s": round(compute_s, 3),
        "load_s": round(sum({result["worker"]: result["load_s"] for result in done}.values()), 3),
        "elapsed_s": round(elapsed_s, 3),
        "realtime_factor": round(compute_s / video_s, 4) if video_s else None,
        "elapsed_factor": round(elapsed_s / video_s, 4) if video_s else None,
    }


def cells(result: JobResult) -> tuple[str, ...]:
    """A row of the table under TITLES."""
    first = str(result["line"]), Path(result["out"]).name, result["status"]
    last = str(result["attempts"]), result["worker"]
    if result["status"] == "failed":
        error = result.get("error") or ""
        return (*first, "", "", "", *last, error if len(error) <= MAX_ERROR else error[: MAX_ERROR - 1] + "…")
    rate = "" if result["realtime_factor"] is None else f"{result['realtime_factor']:.2f}"
    return (*first, str(result["frames"]), f"{result['compute_s']:.1f}", rate, *last, "")


def footer(summary: dict[str, Any]) -> str:
    factor = summary["realtime_factor"]
    rate = "" if factor is None else f"; {factor:.2f} s of compute per second of video"
    return (
        f"{summary['done']} done, {summary['skipped']} skipped, {summary['failed']} failed of {summary['jobs']} jobs;"
        f" {summary['frames']} frames in {summary['elapsed_s']:.1f} s{rate}"
    )

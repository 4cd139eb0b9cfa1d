"""What became of each job: a line as soon as it is known (so that a run can be taken up again), a report at the end."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .jobs import Job

Row = dict[str, Any]
TITLES = ("line", "out", "status", "frames", "seconds", "s per s", "tries", "worker", "")
SHOWN_ERROR = 90


class Records:
    """A .jsonl file of rows, appended to one by one; a last line that was torn off is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._whole = True
        if path.is_file():
            self._read(path.read_text(encoding="utf-8", errors="replace"))

    def _read(self, text: str) -> None:
        self._whole = not text or text.endswith("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, TypeError, KeyError):
                continue

    def done(self, job: Job, key: str) -> Row | None:
        """The row of this very job when it was done before and its output is still the file that was written."""
        row = self.rows.get(key)
        if row is None or row.get("status") != "done" or not job.out.is_file():
            return None
        return row if job.out.stat().st_size == row.get("bytes") else None

    def add(self, row: Row) -> None:
        line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line if self._whole else "\n" + line)
        except OSError as error:
            raise UserError(f"{self.path} could not be written ({error.strerror}); name another --report.") from error
        self._whole = True
        self.rows[row["key"]] = row


def summary(rows: Sequence[Row], wall: float) -> dict[str, Any]:
    """Totals. seconds: of compute, added up over workers; wall_seconds: as the clock on the wall saw it."""
    done = [row for row in rows if row["status"] == "done"]
    video, compute = (sum(row[name] for row in done) for name in ("video_seconds", "seconds"))
    return {
        "jobs": len(rows),
        **{status: sum(row["status"] == status for row in rows) for status in ("done", "skipped", "failed")},
        "frames": sum(row["frames"] for row in done),
        "video_seconds": round(video, 3),
        "seconds": round(compute, 3),
        "load_seconds": round(sum({row["worker"]: row["load_seconds"] for row in done}.values()), 3),
        "wall_seconds": round(wall, 3),
        "seconds_per_video_second": _ratio(compute, video),
        "wall_seconds_per_video_second": _ratio(wall, video),
    }


def _ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None


def table(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Cells under TITLES."""
    return [_cells(row) for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    name, error = Path(row["out"]).name, row.get("error") or ""
    if row["status"] == "failed":
        shown = error if len(error) <= SHOWN_ERROR else error[: SHOWN_ERROR - 1] + "…"
        return (str(row["line"]), name, "failed", "", "", "", str(row["tries"]), row["worker"], shown)
    ratio = "" if row["seconds_per_video_second"] is None else f"{row['seconds_per_video_second']:.2f}"
    cells = (str(row["line"]), name, row["status"], str(row["frames"]), f"{row['seconds']:.1f}", ratio)
    return (*cells, str(row["tries"]), row["worker"], "")


def tail(summary: dict[str, Any]) -> str:
    """One line under the table."""
    ratio = summary["seconds_per_video_second"]
    rate = "" if ratio is None else f"; {ratio:.2f} s of compute per second of video"
    return (
        f"{summary['done']} done, {summary['skipped']} skipped, {summary['failed']} failed of {summary['jobs']} jobs;"
        f" {summary['frames']} frames in {summary['wall_seconds']:.1f} s{rate}"
    )

"""The trainer's list: the clips that were kept."""

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import UserError
from .runner import MANIFEST


def read_manifest(out: Path) -> list[dict[str, Any]]:
    """The records of a prepared folder."""
    path = out / MANIFEST
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{out} has no {MANIFEST}; make it by `latentsync prepare IN {out}`.") from error
    except ValueError as error:
        raise UserError(f"{path} is not what `latentsync prepare` writes ({error}); prepare again.") from error


def kept_clips(out: Path, only: Sequence[str] = (), holdout: Sequence[str] = ()) -> list[Path]:
    """Absolute paths of the kept clips, in the manifest's order.

    only, holdout: patterns of sources to take, and of sources to leave out.
    """

    def wanted(source: str) -> bool:
        named = not only or any(fnmatch(source, pattern) for pattern in only)
        return named and not any(fnmatch(source, pattern) for pattern in holdout)

    kept = [r for r in read_manifest(out) if r["status"] == "kept" and wanted(r["source"])]
    if not kept:
        raise UserError(f"No clip of {out} was kept{' that the patterns name' if only or holdout else ''}.")
    return [(out / record["path"]).resolve() for record in kept]

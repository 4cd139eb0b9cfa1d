"""The faces of a clip in a file, for a run that goes on."""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error

import numpy as np

from ..files import atomic_path
from .track import FaceTrack, Tracks

NO_TRACKS = (OSError, ValueError, KeyError, EOFError, BadZipFile, error)
"""What load_tracks raises for a file that is absent, or torn by a loss of power."""
_ARRAYS = ("points", "landmarks", "present", "seen", "measured", "segments", "cuts")


def save_tracks(path: Path, tracks: Tracks) -> None:
    facts = {"frames": tracks.frames, "size": tracks.size, "cuts": tracks.cuts, "faces": len(tracks.faces)}
    arrays = {f"{name}{n}": np.asarray(getattr(face, name)) for n, face in enumerate(tracks.faces) for name in _ARRAYS}
    for n, face in enumerate(tracks.faces):
        arrays[f"covered{n}"], arrays[f"hidden{n}"] = (
            np.array([*face.covers], np.int64),
            np.array([*face.hidden], np.int64),
        )
        arrays[f"covers{n}"] = np.stack([*face.covers.values()]) if face.covers else np.empty((0, 1, 1), np.uint8)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, facts=json.dumps(facts), **arrays)  # type: ignore[arg-type]


def load_tracks(path: Path) -> Tracks:
    """What save_tracks wrote."""
    with np.load(path) as saved:
        facts = json.loads(str(saved["facts"]))
        size: Any = tuple(facts["size"])
        faces = []
        for n in range(facts["faces"]):
            found: dict[str, Any] = {name: saved[f"{name}{n}"] for name in _ARRAYS}
            found["segments"] = tuple(map(tuple, found["segments"].reshape(-1, 2).tolist()))
            found["cuts"] = tuple(found["cuts"].tolist())
            found["covers"] = dict(zip(saved[f"covered{n}"].tolist(), saved[f"covers{n}"], strict=True))
            found["hidden"] = frozenset(saved[f"hidden{n}"].tolist())
            faces.append(FaceTrack(index=n, size=size, **found))
    return Tracks(tuple(faces), facts["frames"], size, tuple(facts["cuts"]))

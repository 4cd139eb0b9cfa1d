"""What `latentsync prepare` can be told, and the names of its steps."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..dataset import FPS
from ..errors import UserError

SOURCE_STEPS = ("readable", "rate", "shots", "pieces")
PIECE_STEPS = ("face", "crops", "sync", "quality")
STEPS = SOURCE_STEPS + PIECE_STEPS
MAY_BE_SKIPPED = ("shots", "sync", "quality")

LARGEST_MARGIN = 0.5


@dataclass(frozen=True)
class PrepareSettings:
    """resolution: side of the crops in pixels. margin: what is kept around them on each side, as a share of it.

    min_seconds, max_seconds: length of the pieces. min_face: pixels from the brows to the chin, median over a piece.
    shot_threshold: of PySceneDetect's adaptive detector; lower finds more cuts. syncnet: a SyncNet's file.
    min_confidence: None is 3, which suits Chung's network only. max_offset: frames. quality: a TorchScript file.
    """

    resolution: int = 256
    margin: float = 0.0
    min_seconds: float = 5.0
    max_seconds: float = 10.0
    min_face: float = 96.0
    shot_threshold: float = 3.0
    syncnet: Path | None = None
    min_confidence: float | None = None
    max_offset: int = 6
    quality: Path | None = None
    min_quality: float = 40.0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.skip:
            if name not in MAY_BE_SKIPPED:
                raise UserError(f"--skip is {name!r}; the steps that can be skipped are {', '.join(MAY_BE_SKIPPED)}.")
        if self.resolution < 64 or self.resolution % 8:
            raise UserError(f"The resolution is {self.resolution}; give a multiple of 8, at least 64, say 256 or 512.")
        if not 0 <= self.margin <= LARGEST_MARGIN:
            raise UserError(f"The margin is {self.margin:g}; give a share of the crop from 0 to {LARGEST_MARGIN:g}.")
        if not 0.2 <= self.min_seconds <= self.max_seconds:
            raise UserError(
                f"Pieces of {self.min_seconds:g} to {self.max_seconds:g} s are impossible; give --min-seconds of at"
                " least 0.2 and --max-seconds no smaller than that."
            )

    @property
    def shortest(self) -> int:
        """Frames, rounded up."""
        return int(-(-Fraction(str(self.min_seconds)) * FPS // 1))

    @property
    def longest(self) -> int:
        """Frames, rounded down, but never below the shortest."""
        return max(self.shortest, int(Fraction(str(self.max_seconds)) * FPS))

    @property
    def margin_px(self) -> int:
        return round(self.margin * self.resolution)

    @property
    def side(self) -> int:
        """Of the stored picture, margins included."""
        return self.resolution + 2 * self.margin_px

    def as_dict(self) -> dict[str, Any]:
        """For JSON; files by their names only, which are the same on every machine."""
        files = {"syncnet": self.syncnet, "quality": self.quality}
        names = {name: None if path is None else Path(path).name for name, path in files.items()}
        return asdict(self) | names | {"skip": sorted(self.skip)}

"""Settings of `latentsync prepare`, each with the words of its command-line option, and the names of the steps."""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..dataset import FPS
from ..errors import UserError

STEPS = ("readable", "rate", "shots", "clips", "face", "crops", "sync", "quality")
OPTIONAL_STEPS = ("shots", "sync", "quality")

MAX_MARGIN = 0.5
STEPS_PANEL, CROPS, SYNC = "Input and steps", "Clips and crops", "Sync and quality"


def _option(default: Any, panel: str, help: str, metavar: str | None = None, show_default: str | bool = True) -> Any:
    facts = {"help": help, "metavar": metavar, "rich_help_panel": panel, "show_default": show_default}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class PrepareSettings:
    """min_confidence None is 3, which is right for Chung's network only. skip: sorted, some of OPTIONAL_STEPS."""

    resolution: int = _option(256, CROPS, "Side of the crops in pixels.")
    margin: float = _option(
        0.0, CROPS, "Kept around the crops on each side, as a share of them: 0.125 for training with augmentation."
    )
    min_seconds: float = _option(5.0, CROPS, "Shorter shots are dropped.", "SECONDS")
    max_seconds: float = _option(10.0, CROPS, "Longer shots are split into equal clips.", "SECONDS")
    min_face: float = _option(96.0, CROPS, "Smallest median height of the face from brows to chin.", "PIXELS")
    shot_threshold: float = _option(3.0, CROPS, "Of PySceneDetect's adaptive detector; lower finds more cuts.")
    syncnet: Path | None = _option(None, SYNC, "Chung's syncnet_v2.model, or a StableSyncNet.", "FILE")  # noqa: RUF009
    min_confidence: float | None = _option(
        None, SYNC, "Smallest sync confidence.", show_default="3 with Chung's network"
    )
    max_offset: int = _option(6, SYNC, "Audio up to this far off is moved into sync; more is dropped.", "FRAMES")
    quality: Path | None = _option(None, SYNC, "TorchScript network: images (N, 3, H, W) in 0 … 1 to scores.", "FILE")  # noqa: RUF009
    min_quality: float = _option(40.0, SYNC, "Smallest quality score.")
    skip: tuple[str, ...] = _option(
        (), STEPS_PANEL, f"Leave a step out ({', '.join(OPTIONAL_STEPS)}); can be repeated.", "STEP", show_default=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(sorted(set(self.skip))))
        for name in self.skip:
            if name not in OPTIONAL_STEPS:
                raise UserError(f"--skip is {name!r}; the steps that can be skipped are {', '.join(OPTIONAL_STEPS)}.")
        if self.resolution < 64 or self.resolution % 8:
            raise UserError(f"The resolution is {self.resolution}; give a multiple of 8, at least 64, say 256 or 512.")
        if not 0 <= self.margin <= MAX_MARGIN:
            raise UserError(f"The margin is {self.margin:g}; give a share of the crop from 0 to {MAX_MARGIN:g}.")
        if not 0.2 <= self.min_seconds <= self.max_seconds:
            raise UserError(
                f"Clips of {self.min_seconds:g} to {self.max_seconds:g} s are impossible; give --min-seconds of at"
                " least 0.2 and --max-seconds no smaller than that."
            )

    @property
    def min_frames(self) -> int:
        return int(-(-Fraction(str(self.min_seconds)) * FPS // 1))

    @property
    def max_frames(self) -> int:
        """Never below min_frames."""
        return max(self.min_frames, int(Fraction(str(self.max_seconds)) * FPS))

    @property
    def margin_px(self) -> int:
        return round(self.margin * self.resolution)

    @property
    def frame_side(self) -> int:
        """Side of a stored frame, margins included."""
        return self.resolution + 2 * self.margin_px

    def as_dict(self) -> dict[str, Any]:
        """For JSON; files by their names only, which are the same on every machine."""
        fields = asdict(self)
        return {key: value.name if isinstance(value, Path) else value for key, value in fields.items()}

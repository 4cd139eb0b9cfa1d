"""What one worker works with: the items, the folders of a run, and the models, each loaded once."""

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..dataset import FPS
from ..errors import UserError
from ..files import safe_name
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from .settings import PrepareSettings
from .shots import shot_detector

if TYPE_CHECKING:
    from ..evaluation.networks import Network
    from ..face.detect import FaceFinder
    from ..models.syncnet import SyncNet

CHUNG_CONFIDENCE = 3.0
"""The public pipeline's threshold for Chung's network."""
PROBE_CACHE = 4
"""Sources whose index is kept, so that the clips of one long source do not scan it again."""

Kind = Literal["source", "clip"]


@dataclass(frozen=True)
class Item:
    """A source (start = stop = 0) or a clip of it: frames start … stop at 25 fps.

    source: path below the input folder, with slashes. key: hash of what the item was made from.
    """

    id: str
    source: str
    start: int = 0
    stop: int = 0
    key: str = ""


@dataclass(frozen=True)
class Plan:
    """What all workers of a run share. root, out: absolute; on a cluster, paths that every node sees.

    syncnet_hash, quality_hash: of the files. threads: of OpenCV and torch in each worker; 0 leaves them alone.
    device: where the networks run.
    """

    root: Path
    out: Path
    settings: PrepareSettings
    face_model: Path
    syncnet_hash: str = ""
    quality_hash: str = ""
    threads: int = 0
    device: str = "cpu"


def source_id(source: str) -> str:
    """A file name for a source: its own and a hash of its path, so that equal names in two folders do not collide."""
    stem = safe_name(Path(source).stem).replace(" ", "_")[:60]
    return f"{stem}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def at_rate(info: VideoInfo) -> VideoInfo:
    """The same video at 25 fps: frame j is the source's latest frame at or before j / 25 s."""
    if info.fps == FPS and not info.variable_rate:
        return info
    return replace(info, fps=FPS, frames=max(1, int(info.duration * FPS)), variable_rate=True, lead=Fraction(0))


@lru_cache(PROBE_CACHE)
def _probe(path: Path, size: int, changed: int) -> VideoInfo:
    return probe(path)


class Workspace:
    """The paths of a run's files, and its models, each loaded when it is first needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.settings, self.out = plan, plan.settings, plan.out

    def path(self, item: Item) -> Path:
        return self.plan.root / item.source

    def state(self, kind: Kind, item: Item) -> Path:
        return self.out / "work" / kind / f"{item.id}.json"

    def audio(self, item: Item) -> Path:
        """Of the whole source; its clips share it."""
        return self.out / "work" / "audio" / f"{source_id(item.source)}.wav"

    def face(self, item: Item) -> Path:
        return self.out / "work" / "faces" / f"{item.id}.npz"

    def clip(self, item: Item) -> Path:
        return self.out / "clips" / f"{item.id}.mp4"

    def size_and_date(self, item: Item) -> tuple[int, int]:
        stat = self.path(item).stat()
        return stat.st_size, stat.st_mtime_ns

    def source_video(self, item: Item) -> VideoInfo:
        return _probe(self.path(item), *self.size_and_date(item))

    def reader(self, item: Item) -> VideoReader:
        """At 25 fps."""
        return VideoReader(at_rate(self.source_video(item)))

    @cached_property
    def finder(self) -> "FaceFinder":
        from ..face.detect import FaceFinder

        return FaceFinder(self.plan.face_model)

    @cached_property
    def syncnet(self) -> "SyncNet":
        from ..weights.syncnet_files import load_syncnet

        assert self.settings.syncnet  # make_plan() checked it
        return load_syncnet(self.settings.syncnet, device=self.plan.device)

    @cached_property
    def uses_chung(self) -> bool:
        from ..models.syncnet import ChungSyncNet

        return isinstance(self.syncnet, ChungSyncNet)

    @cached_property
    def min_confidence(self) -> float:
        if self.settings.min_confidence is not None:
            return self.settings.min_confidence
        if not self.uses_chung:
            raise UserError(
                "A StableSyncNet measures confidence on its own scale, so the default of 3 does not fit; give"
                " --min-confidence (0 keeps all and shows in report.png what is there)."
            )
        return CHUNG_CONFIDENCE

    @cached_property
    def quality(self) -> "Network":
        from ..evaluation.networks import Network

        assert self.settings.quality
        return Network(self.settings.quality, self.plan.device)

    def load(self, kind: Kind) -> None:
        """Load all models and libraries that items of this kind need. UserError: one is missing or does not fit."""
        skip = self.settings.skip
        if kind == "source":
            if "shots" not in skip:
                shot_detector(self.settings.shot_threshold)
            return
        _ = self.finder
        if "sync" not in skip:
            _ = self.min_confidence
            config = getattr(self.syncnet, "config", None)
            if config is not None and config.space != "pixel":
                raise UserError("This SyncNet takes VAE latents; for preparing give one that takes pixels.")
        if "quality" not in skip:
            _ = self.quality

    def close(self) -> None:
        if "finder" in self.__dict__:
            self.finder.close()
            del self.finder

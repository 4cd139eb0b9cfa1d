"""What one process needs to work on items: folders, models loaded once, and the call that Ray and pools make."""

import errno
import hashlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from . import clip_steps as piece
from . import source_steps as source
from .settings import PrepareSettings
from .steps import Item, Outcome, Step, known, run_chain

if TYPE_CHECKING:
    from ..face.detect import FaceFinder
    from ..models.syncnet import SyncNet

CHUNG_CONFIDENCE = 3.0
"""The public pipeline's threshold for Chung's network."""
PROBED = 4
"""Sources whose index is held, so that the pieces of one long source do not scan it again."""
NO_ROOM = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE}


@dataclass(frozen=True)
class Plan:
    """What all workers of a run share. root, out: absolute; on a cluster, paths that every node sees.

    syncnet_mark, quality_mark: tell the files apart that measured.
    """

    root: Path
    out: Path
    settings: PrepareSettings
    face_model: Path
    syncnet_mark: str = ""
    quality_mark: str = ""
    threads: int = 0
    """Of OpenCV and torch in each worker; 0 leaves them alone."""


def mark(path: Path | None) -> str:
    """The first digits of a file's SHA-256."""
    if path is None:
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


class Shop:
    """Where things lie, and the models, each loaded when it is first needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.settings, self.out = plan, plan.settings, plan.out
        self._probed: OrderedDict[tuple[str, int, int], VideoInfo] = OrderedDict()

    def path(self, item: Item) -> Path:
        return self.plan.root / item.source

    def state(self, kind: str, item: Item) -> Path:
        return self.out / "work" / kind / f"{item.id}.json"

    def sound(self, item: Item) -> Path:
        """Of the item's source, whole: pieces of one source share it."""
        return self.out / "work" / "sound" / f"{source_id(item.source)}.wav"

    def face(self, item: Item) -> Path:
        return self.out / "work" / "faces" / f"{item.id}.npz"

    def clip(self, item: Item) -> Path:
        return self.out / "clips" / f"{item.id}.mp4"

    def source_video(self, item: Item) -> VideoInfo:
        path = self.path(item)
        facts = path.stat()
        key = (str(path), facts.st_size, facts.st_mtime_ns)
        if key not in self._probed:
            self._probed[key] = probe(path)
            while len(self._probed) > PROBED:
                self._probed.popitem(last=False)
        return self._probed[key]

    def video(self, item: Item) -> VideoInfo:
        """At 25 fps."""
        return source.at_rate(self.source_video(item))

    def reader(self, item: Item) -> VideoReader:
        """At 25 fps."""
        return VideoReader(self.video(item))

    @cached_property
    def finder(self) -> "FaceFinder":
        from ..face.detect import FaceFinder

        return FaceFinder(self.plan.face_model)

    @cached_property
    def syncnet(self) -> "SyncNet":
        from ..weights.syncnet_files import load_syncnet

        assert self.settings.syncnet  # make_plan() saw to that
        return load_syncnet(self.settings.syncnet)

    @cached_property
    def chung(self) -> bool:
        from ..models.syncnet import ChungSyncNet

        return isinstance(self.syncnet, ChungSyncNet)

    @cached_property
    def min_confidence(self) -> float:
        if self.settings.min_confidence is not None:
            return self.settings.min_confidence
        if not self.chung:
            raise UserError(
                "A StableSyncNet measures confidence on a scale of its own, so the usual 3 does not fit; give"
                " --min-confidence (0 keeps all and shows in report.png what is there)."
            )
        return CHUNG_CONFIDENCE

    @cached_property
    def quality(self) -> Any:
        import torch

        path = self.settings.quality
        try:
            return torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path} is no TorchScript file; save the network by torch.jit.save.") from error

    def load(self, kind: str) -> None:
        """Every model that items of this kind need, and every library: what is missing stops the run before it begins.

        UserError: a missing file or library, or a network that does not fit.
        """
        skip = self.settings.skip
        if kind == "source":
            if "shots" not in skip:
                source.shot_detector(self.settings.shot_threshold)
            return
        _ = self.finder
        if "sync" not in skip:
            _ = self.min_confidence
            config = getattr(self.syncnet, "config", None)
            if config is not None and config.space != "pixel":
                raise UserError("This SyncNet judges latents; for preparing give one that judges pixels.")
        if "quality" not in skip:
            _ = self.quality

    def close(self) -> None:
        if "finder" in self.__dict__:
            self.finder.close()
            del self.finder


class Worker:
    """Items in, outcomes out, both as rows {"json": …}. Ray Data builds one for each actor; pools, one per process."""

    def __init__(self, plan: Plan, kind: str) -> None:
        """kind: "source" or "piece"."""
        if plan.threads:
            _hold(plan.threads)
        self.shop, self.kind = Shop(plan), kind
        self.shop.load(kind)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        return {"json": self.run(Item(**_parsed(row["json"]))).to_json()}

    def run(self, item: Item) -> Outcome:
        try:
            outcome = run_chain(steps(self.kind), self.shop, item, self.shop.state(self.kind, item))
            return cleared(self.shop, self.kind, outcome)
        except OSError as error:
            if error.errno in NO_ROOM:
                stop = f"{self.shop.out} cannot be written ({error.strerror}); make room and run again."
                return Outcome(item, stop=stop)
            return Outcome(item, error=f"{type(error).__name__}: {error}")
        except Exception as error:  # one item must not end the work on the others; it is counted and shown
            return Outcome(item, error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        self.shop.close()


def steps(kind: str) -> tuple[Step, ...]:
    return source.STEPS if kind == "source" else piece.STEPS


def settled(shop: Shop, kind: str, item: Item) -> Outcome | None:
    """What became of an item in an earlier run, where nothing is left to do."""
    with suppress(OSError):
        outcome, left = known(steps(kind), shop, item, shop.state(kind, item))
        return None if left else cleared(shop, kind, outcome)
    return None


def cleared(shop: Shop, kind: str, outcome: Outcome) -> Outcome:
    """No clip stays of a piece that was dropped."""
    if outcome.drop and kind == "piece":
        clip = shop.clip(outcome.item)
        for left in (clip, clip.with_suffix(".npz")):
            left.unlink(missing_ok=True)
    return outcome


def _parsed(text: str) -> dict[str, Any]:
    import json

    return json.loads(text)


def _hold(threads: int) -> None:
    import cv2
    import torch

    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)


def source_id(source_path: str) -> str:
    """A file name for a source: its own and a few digits of its path's hash, so that equal names do not meet."""
    from ..files import safe_name

    stem = safe_name(Path(source_path).stem).replace(" ", "_")[:60]
    return f"{stem}-{hashlib.sha256(source_path.encode()).hexdigest()[:8]}"

"""Output frames with new mouths: windows of 16 frames are sampled, and pasted into the frames of the source."""

import logging
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Event

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio.mel import SAMPLE_RATE
from .audio.pauses import hush, rest_weights
from .audio.whisper_features import SpeechFeatures
from .conditions import Autoencoder, ConditionEncoder, Latents, RecentLatents
from .face.aligned import AlignedFace
from .face.composite import first_row_read
from .face.rest import rested
from .face.track import FaceTrack
from .media.ahead import Stopped, ahead
from .media.source import Source
from .media.watermark import draw_watermark
from .models.memory import MemoryPlan, free_bytes, give_back, is_out_of_memory, plans
from .models.tiny_vae import TinyVAE
from .models.vae import VAE
from .sampling import denoise_window, shared_noise
from .settings import WINDOW, Progress, ProgressCallback, Settings
from .timeline import (
    Timeline,
    Window,
    frames_of_spans,
    parse_spans,
    windows,
)
from .weights.bundle import Models, draft_decoder

LATENTS_LIMIT = 2**26
"""Bytes of latents of a looped clip that are kept, so that its frames are encoded once."""


_log = logging.getLogger(__name__)


class Timings(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - start})

    def add(self, other: Mapping[str, float]) -> None:
        for stage, seconds in other.items():
            self[stage] = self.get(stage, 0.0) + seconds


RenderedFrame = tuple[np.ndarray, np.ndarray]
"""An output frame (H, W, 3) uint8 and how much of each pixel was repainted, (H, W) float32."""


@torch.inference_mode()
def render(
    source: Source, renderers: "WindowRenderer | Sequence[WindowRenderer]", first: int = 0
) -> Generator[RenderedFrame]:
    """Every output frame from `first` on with its mask, in order: those with the face repainted, the others as they
    are. Several renderers of one timeline paint one after the other."""
    every = [renderers] if isinstance(renderers, WindowRenderer) else list(renderers)
    settings = every[0].settings
    for frame, mask in _painted(source, every, first):
        yield marked(frame, settings), mask


def _painted(source: Source, renderers: Sequence["WindowRenderer"], first: int) -> Iterator[RenderedFrame]:
    *before, renderer = renderers
    timeline, window_batch = renderer.timeline, renderer.settings.window_batch
    begin, reference = first, None
    for start, stop in renderer.face.segments:
        if start < first < stop:  # in the midst of what is rendered together: from windows on that need none before
            groups = grouped(start, stop, window_batch)
            begin = max(g[0].start for g in groups if g[0].start == g[0].keep <= first)
            head = next(iter(source.read(timeline.source_indices(start, start + 1))))
            reference = renderer.encode_reference(renderer.crop([head], start)[0], start)
    if before:
        rendered = _painted(source, before, begin)
    else:
        empty = np.zeros(renderer.face.size[::-1], np.float32)
        rendered = ((frame, empty) for frame in source.read(timeline.source_indices(begin)))
    masks: deque[np.ndarray] = deque()

    def frames() -> Iterator[np.ndarray]:
        for frame, mask in rendered:
            masks.append(mask)
            yield frame

    given, position = frames(), begin
    for start, stop in (*renderer.face.segments, (timeline.frames, timeline.frames)):
        if stop <= first < timeline.frames:
            continue
        for frame in islice(given, max(0, start - position)):
            yield frame, masks.popleft()
        at = max(start, begin)
        for i, (frame, mask) in enumerate(renderer.render_segment(given, start, stop, at, reference), at):
            under = masks.popleft()
            if i >= first:
                yield frame, np.maximum(under, mask)
        position, reference = stop, None


def marked(frame: np.ndarray, settings: Settings) -> np.ndarray:
    return draw_watermark(frame) if settings.watermark == "visible" else frame


def only_in(
    settings: Settings, timeline: Timeline, only: tuple[tuple[int, int], ...] | None = None
) -> tuple[tuple[int, int], ...] | None:
    """Frames in which lips are made anew: those of settings.spans, and of only."""
    if not settings.spans:
        return only
    asked = frames_of_spans(parse_spans(settings.spans), timeline.fps, timeline.frames)
    if only is None:
        return asked
    return tuple((max(a, c), min(b, d)) for a, b in asked for c, d in only if max(a, c) < min(b, d))


def grouped(start: int, stop: int, size: int) -> list[list[Window]]:
    """The windows of a segment, in the groups that are computed together."""
    plan = windows(start, stop)
    return [plan[i : i + size] for i in range(0, len(plan), size)]


class WindowRenderer:
    """Repaints windows of output frames. A window depends on its own frames, the segment's first one and the speech.

    reference: align, hear and paste as the public code does, to compare with it. only: see AlignedFace. latents: where
    those of source frames are kept, in place of memory.
    """

    @torch.inference_mode()
    def __init__(
        self,
        timeline: Timeline,
        track: FaceTrack,
        speech: Tensor,
        models: Models,
        settings: Settings,
        timings: Timings,
        on_progress: ProgressCallback | None = None,
        *,
        reference: bool = False,
        only: tuple[tuple[int, int], ...] | None = None,
        latents: Latents | None = None,
    ) -> None:
        self.timeline, self.models, self.settings = timeline, models, settings
        self.timings, self.on_progress, self.reference = timings, on_progress, reference
        # the public code neither steadies the points nor lets Whisper's blocks overlap
        asked = only_in(settings, timeline, only)
        self.face = AlignedFace(track, timeline, models.resolution, reference=reference, only=asked)
        # sound that ends before the picture is followed by silence, not by its last sound held
        short = int(timeline.duration * SAMPLE_RATE) - len(speech)
        padded = F.pad(speech, (0, max(0, short)))
        self.rest = rest_weights(padded, timeline) if settings.silence == "close" else None
        if settings.silence != "keep":
            padded = hush(padded)
        with timings.measure("hear"):
            self.features = SpeechFeatures(padded, SAMPLE_RATE, models.whisper, exact=reference)
        self.encoder = ConditionEncoder(
            models.vae,
            models.resolution,
            device=models.device,
            dtype=models.dtype,
            latents=latents or RecentLatents(self._frames_kept()),
            decoder=self._decoder(),
        )
        noise = shared_noise(settings.seed, models.vae.channels, *self.encoder.mask.shape)
        self.noise = noise.to(models.device)
        self.stop = Event()
        self.plan = MemoryPlan(settings.window_batch)
        self._planned()
        self.done = 0
        self.total = settings.steps * sum(len(windows(*segment)) for segment in self.face.segments)

    def _decoder(self) -> Autoencoder | None:
        """In place of the VAE, for drafts of networks with Stable Diffusion's latents."""
        models = self.models
        fits = (models.vae.channels, models.vae.factor) == (4, 8) and not isinstance(models.vae, TinyVAE)
        return draft_decoder(models.device, models.dtype) if self.settings.mode == "draft" and fits else None

    @property
    def overlapped(self) -> bool:
        """Whether threads compute ahead. Where the processor is the device its cores are busy as it is: on two of them
        a run took 4 % longer so, and 250 MB more."""
        return self.models.device.type != "cpu"

    def _frames_kept(self) -> int:
        """Frames whose latents are kept: those of a loop come again, others only where windows overlap."""
        vae, timeline = self.models.vae, self.timeline
        size = 2 * vae.channels * (self.models.resolution // vae.factor) ** 2 * self.models.dtype.itemsize
        loop = timeline.source_frames if timeline.frames > timeline.source_frames else 0
        return max(2 * WINDOW, min(loop, LATENTS_LIMIT // size))

    def render_segment(
        self,
        frames: Iterator[np.ndarray],
        start: int,
        stop: int,
        at: int | None = None,
        reference: Tensor | None = None,
    ) -> Iterator[RenderedFrame]:
        """The frames start … stop-1 with their masks; takes as many from `frames`. at: begin with the windows that
        start there instead; reference: encode_reference of the segment's first crop then."""
        self.stop.clear()
        computed = self._computed(frames, start, stop, start if at is None else at, reference)
        if self.overlapped:  # the next windows are computed while these frames are pasted, and written
            computed = ahead(computed, 1, self.stop)
        for group, new, crops, pixels in computed:
            yield from self._pasted(group, new, crops, pixels)

    @torch.inference_mode()
    def _computed(
        self, frames: Iterator[np.ndarray], start: int, stop: int, at: int, reference: Tensor | None
    ) -> Generator[tuple[list[Window], list[np.ndarray], list[np.ndarray], np.ndarray]]:
        """For each group of windows its new frames, the crops from its start on, and the made pixels."""
        crops: deque[np.ndarray] = deque(maxlen=WINDOW)  # the last window is shifted back over its neighbor
        for group in grouped(start, stop, self.settings.window_batch):
            if group[0].keep < at:
                continue
            with self.timings.measure("read"):
                new = list(islice(frames, group[-1].stop - group[0].keep))
            cropped = self.crop(new, group[0].keep)
            if group[0].keep == start:
                reference = self.encode_reference(cropped[0], start)
            shared = [*crops][len(crops) - (group[0].keep - group[0].start) :]
            seen = [*shared, *cropped]
            yield group, new, seen, self._made(group, seen, reference)
            crops.extend(cropped)

    def crop(self, frames: Sequence[np.ndarray], first: int) -> list[np.ndarray]:
        """The faces of the output frames first, first + 1, …"""
        with self.timings.measure("crop"):
            return list(self.face.crops(frames, first))

    def encode_reference(self, crop: np.ndarray, start: int) -> Tensor | None:
        """Latents of a segment's first crop, that of output frame `start`, for a network that takes one reference for
        all of a segment."""
        if self.models.unet.config.reference_mode != "first_frame":
            return None
        with self.timings.measure("encode"):
            return self.encoder.encode_reference(crop, self.timeline.source_index(start))

    def render_windows(
        self,
        group: Sequence[Window],
        frames: Sequence[np.ndarray],
        crops: Sequence[np.ndarray],
        reference: Tensor | None = None,
    ) -> Iterator[RenderedFrame]:
        """The frames that these windows keep, with their masks. frames: just these; crops: from the first window's
        start on. ValueError where they are too few or too many."""
        if len(frames) != group[-1].stop - group[0].keep or len(crops) != group[-1].stop - group[0].start:
            raise ValueError(f"{len(frames)} frames and {len(crops)} crops for the windows {group}")
        return self._pasted(group, frames, crops, self._made(group, crops, reference))

    def _made(self, group: Sequence[Window], crops: Sequence[np.ndarray], reference: Tensor | None) -> np.ndarray:
        """Kept frames of these windows as pixels (N, R, R, 3), 0..255; with less at once where memory runs out."""
        done = self.done
        while True:
            try:
                size = self.plan.windows
                parts = [group[i : i + size] for i in range(0, len(group), size)]
                return np.concatenate([self._made_together(part, crops, group[0].start, reference) for part in parts])
            except (RuntimeError, MemoryError) as error:
                plan = self.plan.smaller()
                if plan is None or not is_out_of_memory(error):
                    raise
                self._take(plan, "ran out of memory")
                self.done = done
            give_back(self.models.device)  # here, where nothing of what failed is held any more

    def _take(self, plan: MemoryPlan, why: str) -> None:
        self.plan = plan
        if isinstance(self.models.vae, VAE):
            self.models.vae.pictures_at_once = plan.pictures
        how = "with and without the speech together" if plan.together else "first without the speech, then with it"
        _log.warning(
            "%s %s: continuing with windows: %d, %s, pictures in the VAE: %d",
            self.models.device, why, plan.windows, how, plan.pictures,
        )  # fmt: skip

    def _planned(self) -> None:
        """Take the largest plan that fits into the memory that is free, where that can be known."""
        device, free = self.models.device, free_bytes(self.models.device)
        if free is None:
            return
        facts = (self.models.unet.config, self.models.resolution, self.models.dtype.itemsize)
        needs = [(p, p.bytes(*facts, guided=self.settings.guidance != 1)) for p in plans(self.plan)]
        plan, need = next(((p, n) for p, n in needs if n < free), needs[-1])
        _log.info("%s: a window needs about %.1f GB beside the networks, free are %.1f", device, need / 1e9, free / 1e9)
        if plan != self.plan:
            self._take(plan, f"has {free / 1e9:.1f} GB left and {needs[0][1] / 1e9:.1f} would be needed")

    def _made_together(
        self, group: Sequence[Window], crops: Sequence[np.ndarray], origin: int, reference: Tensor | None
    ) -> np.ndarray:
        with self.timings.measure("encode"):
            conditions = [
                self.encoder.window(
                    crops[w.start - origin : w.stop - origin],
                    list(self.timeline.source_indices(w.start, w.stop)),
                    reference,
                )
                for w in group
            ]
        return self._sample(group, torch.stack(conditions)).numpy()

    def _pasted(
        self, group: Sequence[Window], frames: Sequence[np.ndarray], crops: Sequence[np.ndarray], pixels: np.ndarray
    ) -> Iterator[RenderedFrame]:
        origin, first = group[0].start, group[0].keep
        for i, frame in enumerate(frames):
            with self.timings.measure("paste"):
                crop = pixels[i]
                if self.rest is not None and self.rest[first + i] > 0:
                    source = crops[first + i - origin]
                    crop = rested(crop, self.models.finder, float(self.rest[first + i]), source)
                result = self.face.paste(frame, crop, first + i, reference=self.reference)
            yield result

    def _sample(self, group: Sequence[Window], conditions: Tensor) -> Tensor:
        """Kept frames of all windows of a group as pixels (N, R, R, 3), 0..255."""
        with self.timings.measure("hear"):
            audio = torch.stack([self.features.windows(self.timeline.fps, w.start, w.stop) for w in group])
        with self.timings.measure("sample"):
            latents = denoise_window(
                self.models.unet,
                self.noise.expand(len(group), -1, group[0].stop - group[0].start, -1, -1),
                conditions,
                audio.to(conditions),
                steps=self.settings.steps,
                guidance=self.settings.guidance,
                solver=self.settings.solver,
                mode=self.settings.mode,
                reuse=self.settings.reuse,
                together=self.plan.together,
                on_step=lambda done, steps, clean: self._report(len(group), clean),
            )
        kept = [frames[:, w.keep - w.start :] for frames, w in zip(latents, group, strict=True)]
        # window by window, as they are encoded: rounding then never depends on the group
        with self.timings.measure("decode"):
            top = first_row_read(self.models.resolution)
            return torch.cat([self.encoder.decode(frames, top) for frames in kept])

    def _report(self, steps: int, clean: Tensor) -> None:
        if self.stop.is_set():
            raise Stopped
        self.done += steps
        if self.on_progress:
            self.on_progress(Progress("sample", self.done, self.total, clean))

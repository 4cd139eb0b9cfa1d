"""Face crops to the U-Net's conditions, and its latents back to pixels. Latents of frames are kept for a while."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .face.mask import latent_mask, mouth_mask
from .settings import WINDOW


class Autoencoder(Protocol):
    """A VAE of the engine, or a host's behind the same calls. Pixels are in [-1, 1], latents are scaled.

    top: nobody looks at the rows of pixels above it.
    """

    channels: int
    factor: int

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor, top: int = 0) -> Tensor: ...


Kind = Literal["masked", "reference"]


class Latents(Protocol):
    """What was encoded, (C, h, w) by kind and source frame; None where it is not known, or no more."""

    def get(self, kind: Kind, source: int) -> Tensor | None: ...

    def put(self, kind: Kind, source: int, latents: Tensor) -> None: ...


class RecentLatents:
    """In memory, of the last so many frames: windows overlap, stills repeat, loops come again."""

    def __init__(self, frames: int) -> None:
        self.limit = 2 * frames
        self._kept: OrderedDict[tuple[Kind, int], Tensor] = OrderedDict()

    def get(self, kind: Kind, source: int) -> Tensor | None:
        return self._kept.get((kind, source))

    def put(self, kind: Kind, source: int, latents: Tensor) -> None:
        self._kept[kind, source] = latents
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)


class SavedLatents:
    """In a file, for every frame of a clip: a later run with another speech finds them there.

    frames: of the clip. shape, dtype: of one frame's latents. A file of another length is begun anew. A disk that is
    full costs only what could not be written.
    """

    def __init__(self, path: Path, frames: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.path, self.marks, self.frames = path, path.with_suffix(".known"), frames
        self.shape, self.dtype, self.size = shape, dtype, math.prod(shape) * dtype.itemsize
        self.recent = RecentLatents(2 * WINDOW)
        lengths = {path: 2 * frames * self.size, self.marks: 2 * frames}
        if any(not file.exists() or file.stat().st_size != length for file, length in lengths.items()):
            for file, length in lengths.items():
                with file.open("wb") as empty:
                    empty.truncate(length)  # takes room on the disk only where it is written
        self.known = bytearray(self.marks.read_bytes())

    def get(self, kind: Kind, source: int) -> Tensor | None:
        found = self.recent.get(kind, source)
        row = self._row(kind, source)
        if found is None and self.known[row]:
            with self.path.open("rb") as file:
                file.seek(row * self.size)
                found = torch.frombuffer(bytearray(file.read(self.size)), dtype=self.dtype).view(self.shape)
            self.recent.put(kind, source, found)
        return found

    def put(self, kind: Kind, source: int, latents: Tensor) -> None:
        self.recent.put(kind, source, latents)
        row, data = self._row(kind, source), latents.to("cpu", self.dtype).contiguous().view(torch.uint8)
        with suppress(OSError):
            _write_at(self.path, row * self.size, data.numpy().tobytes())
            _write_at(self.marks, row, b"\1")  # after its numbers: what is half written does not count
            self.known[row] = 1

    def _row(self, kind: Kind, source: int) -> int:
        return source + (self.frames if kind == "reference" else 0)


def _write_at(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def encode_crops(
    encode: Callable[[Tensor], Tensor], pixels: Tensor, keep: Tensor, reference: Tensor | None = None
) -> Tensor:
    """(N, 3, R, R) pixels in [-1, 1] to (N, 2C, h, w): latents without the mouth, then the reference's.

    keep: (R, R), 0 at the mouth. reference: latents (1, C, h, w) that serve all; None: each crop is its own.
    """
    masked = encode(pixels * keep)
    return torch.cat((masked, (encode(pixels) if reference is None else reference).expand_as(masked)), 1)


class ConditionEncoder:
    """Encodes crops of one side (`resolution`) for one VAE. mask: (h, w), 1 = keep, 0 = the mouth. latents: where those
    of source frames are kept; each frame's crop must then be the same whenever it shows. decoder: decodes in place of
    vae."""

    def __init__(
        self,
        vae: Autoencoder,
        resolution: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        latents: Latents | None = None,
        decoder: Autoencoder | None = None,
    ) -> None:
        self.vae, self.device, self.dtype = vae, device, dtype
        self.decoder = decoder or vae
        self.latents = latents or RecentLatents(2 * WINDOW)
        self.keep = torch.from_numpy(mouth_mask(resolution)).to(device, dtype)
        self.mask = torch.from_numpy(latent_mask(resolution, vae.factor)).to(device, dtype)

    def encode(self, crops: Sequence[np.ndarray] | np.ndarray, reference: Tensor | None = None) -> Tensor:
        """(N, R, R, 3) uint8 crops to (N, 2C, h, w), see encode_crops."""
        return encode_crops(self.vae.encode, self._pixels(crops), self.keep, reference)

    def encode_reference(self, crop: np.ndarray, source: int) -> Tensor:
        """(1, C, h, w): latents of one crop, mouth included."""
        known = self.latents.get("reference", source)
        if known is None:
            known = self.vae.encode(self._pixels([crop]))[0]
            self.latents.put("reference", source, known)
        return known[None].to(self.device, self.dtype)

    def window(self, crops: Sequence[np.ndarray], sources: Sequence[int], reference: Tensor | None = None) -> Tensor:
        """(2C + 1, F, h, w): mask, masked and reference latents of one window; a source frame is encoded once."""
        kinds: tuple[Kind, ...] = ("masked", "reference") if reference is None else ("masked",)
        crop_of = dict(zip(sources, crops, strict=True))
        new = [source for source in crop_of if any(self.latents.get(kind, source) is None for kind in kinds)]
        if new:
            encoded = self.encode([crop_of[source] for source in new], reference)
            for source, both in zip(new, encoded, strict=True):
                for kind, latents in zip(kinds, both.chunk(2), strict=False):
                    self.latents.put(kind, source, latents)
        parts = [self.mask.expand(1, len(sources), *self.mask.shape)]
        for kind in kinds:
            found = [self.latents.get(kind, source) for source in sources]
            parts.append(torch.stack([one for one in found if one is not None], 1).to(self.mask))
        if reference is not None:
            parts.append(reference.transpose(0, 1).expand_as(parts[1]))
        return torch.cat(parts)

    def decode(self, latents: Tensor, top: int = 0) -> Tensor:
        """(C, F, h, w) latents to (F, R, R, 3) float32 pixels in 0..255, on the CPU. top: see Autoencoder."""
        pixels = self.decoder.decode(latents.transpose(0, 1).to(self.device, self.dtype), top)
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu()

    def _pixels(self, crops: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device)
        return (pixels.permute(0, 3, 1, 2).to(self.dtype) / 127.5) - 1

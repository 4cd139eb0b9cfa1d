"""ComfyUI's pictures, sound and frame rates as the engine takes them, and back. No ComfyUI in here."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..latentsync.errors import UserError
from ..latentsync.face.aligned import AlignedFace
from ..latentsync.face.composite import Layer
from ..latentsync.timeline import Timeline, exact_rate

FASTEST = 1000
"""Frames per second; what is above this is a mistake, and would fill the memory with pictures."""
FPS_HINT = "connect the fps output of Get Video Components or type it"


class Frames(Sequence[np.ndarray]):
    """An IMAGE as uint8 RGB frames (H, W, 3), each made when it is asked for; one is held, not all.

    NaN is an error of the frame that has it, and found when that frame is asked for.
    """

    def __init__(self, images: Tensor, name: str = "images") -> None:
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return Frames(self.images[i], self.name)
        return self._scaled(i).round_().to(torch.uint8).numpy()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.read(range(len(self)))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images.shape[2], self.images.shape[1]

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Frames by number, in any order: what the engine calls a source."""
        return (self[i] for i in indices)

    def pixels(self, i: int) -> np.ndarray:
        """One frame as float32 (H, W, 3), 0..255, not rounded."""
        return self._scaled(i).numpy()

    def _scaled(self, i: int) -> Tensor:
        frame = self.images[i][..., :3].detach().cpu().float()
        low, high = frame.aminmax()
        if not low <= high:  # both are NaN where one pixel is
            raise UserError(
                f"Frame {i} of {self.name} has pixels that are not numbers (NaN); check the node that made it; a"
                " model in fp16 is often the cause."
            )
        scaled = (frame * 255).contiguous()
        return scaled if low >= 0 and high <= 1 else scaled.clamp_(0, 255)


def frames_of(images: Tensor, name: str = "images") -> Frames:
    """(F, H, W, 3 or 4) float 0..1; a fourth channel, alpha, is left out. name: the input, for error messages."""
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[-1] not in (3, 4) or not images.is_floating_point():
        raise UserError(
            f"{name} is {images.dtype} of shape {shape}; connect an IMAGE: floats (frames, height, width, 3), or 4 with"
            " alpha."
        )
    if not images.numel():
        raise UserError(f"{name} is empty, of shape {shape}; give at least one picture.")
    return Frames(images, name)


def check_track(clip: Any) -> None:
    """UserError unless it is ours: another pack may have a socket of this name."""
    if not isinstance(clip, AlignedFace):
        raise UserError(f"The face_track is a {type(clip).__name__}; connect that of LatentSync: Find Faces.")


def check_frames(images: Frames, clip: AlignedFace) -> None:
    """UserError unless the faces were found in these pictures, as far as number and size can tell."""
    check_track(clip)
    if len(images) != clip.frames:
        raise UserError(
            f"There are {len(images)} images and the FACE_TRACK has {clip.frames} frames; connect both from the same"
            " LatentSync: Fit Length, or the images in which Find Faces found the face."
        )
    if images.size != clip.size:
        raise UserError(
            f"The images are {images.size[0]}×{images.size[1]} px and the face was found in {clip.size[0]}×"
            f"{clip.size[1]} px; connect the images in which LatentSync: Find Faces found it."
        )


def check_crops(crops: Frames, clip: AlignedFace) -> None:
    """UserError unless there is one square crop for each frame; the side is free."""
    if len(crops) != clip.frames:
        raise UserError(
            f"There are {len(crops)} crops and the FACE_TRACK has {clip.frames} frames; connect both from the same"
            " LatentSync: Find Faces or Fit Length."
        )
    if crops.size[0] != crops.size[1]:
        raise UserError(
            f"The crops are {crops.size[0]}×{crops.size[1]} px and must be square; an upscaler in between has to keep"
            " their shape."
        )


def lay(image: Tensor, over: Layer, kept: Tensor | None = None) -> Tensor:
    """Blend a layer into image, in floats; where its alpha is 0, and in an alpha channel, all stays bit for bit.

    image: (H, W, 3 or 4) float 0..1, changed in place. kept: (H, W), 1 = not repainted. Returns how much of each pixel
    is new, (H, W) float32.
    """
    alpha = torch.from_numpy(over.alpha)
    alpha = alpha if kept is None else alpha * (1 - kept[over.box])
    where = alpha > 0
    under = image[over.box][..., :3]
    new = torch.from_numpy(over.pixels)[where] / 255
    old = under[where.to(image.device)].cpu().float()
    # interpolation overshoots; a picture that goes beyond 0..1 itself (HDR) may do so still
    new = torch.clamp(old + alpha[where][:, None] * (new - old), old.clamp(max=0), old.clamp(min=1))
    under[where.to(image.device)] = new.to(image)
    mask = torch.zeros(image.shape[:2])
    mask[over.box] = alpha
    return mask


def fitted_mask(mask: Tensor, frames: Frames, clip: AlignedFace) -> Callable[[int], Tensor]:
    """A MASK by frame, in the pictures' size: one for all, one for each frame, or one for each frame of the source."""
    if mask.ndim not in (2, 3) or not mask.numel():
        raise UserError(f"keep_out has shape {tuple(mask.shape)}; connect a MASK: (frames, height, width).")
    masks = mask.reshape(-1, *mask.shape[-2:])
    known = {1: lambda i: 0, clip.frames: lambda i: i, clip.timeline.source_frames: clip.timeline.source_index}
    if len(masks) not in known:
        raise UserError(
            f"keep_out has {len(masks)} masks and there are {clip.frames} frames of"
            f" {clip.timeline.source_frames} images; give one for all, or one for each."
        )
    number, (width, height) = known[len(masks)], frames.size

    def one(i: int) -> Tensor:
        found = masks[number(i)].detach().cpu().float().clamp(0, 1)
        if found.shape == (height, width):
            return found
        return F.interpolate(found[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]

    return one


def speech_of(audio: Mapping[str, Any] | None) -> tuple[Tensor, int]:
    """An AUDIO as waveform (channels, samples) float32 and its sample rate in Hz."""
    if audio is None:
        raise UserError("There is no audio: the video has none, or nothing is connected; give a recording of speech.")
    missing = [key for key in ("waveform", "sample_rate") if key not in audio]
    if missing:
        raise UserError(
            f"The AUDIO has no {' and no '.join(missing)}; connect the output of Load Audio or another node."
        )
    waveform, rate = _one_recording(torch.as_tensor(audio["waveform"])), int(audio["sample_rate"])
    if rate <= 0:
        raise UserError(f"The AUDIO has {rate} samples per second; load it again.")
    waveform = _as_floats(waveform.detach().cpu())
    if not waveform.isfinite().all():
        raise UserError("The AUDIO has samples that are not numbers (NaN or infinity); export it again.")
    return waveform, rate


def _one_recording(waveform: Tensor) -> Tensor:
    if waveform.ndim == 3 and len(waveform) > 1:
        raise UserError(
            f"The AUDIO holds {len(waveform)} recordings in a batch; give one, for example by loading them one by one."
        )
    if waveform.ndim not in (1, 2, 3):
        raise UserError(f"The AUDIO has shape {tuple(waveform.shape)}; (1, channels, samples) is needed.")
    if not waveform.numel():
        raise UserError("The AUDIO is empty; give a recording of speech.")
    return waveform.reshape(-1, waveform.shape[-1])


def _as_floats(waveform: Tensor) -> Tensor:
    """Some nodes hand on a file's samples as they are stored: whole numbers."""
    if waveform.is_floating_point():
        return waveform.float()
    half = (torch.iinfo(waveform.dtype).max + 1) // (1 if waveform.dtype.is_signed else 2)
    return (waveform.double() / half - (0 if waveform.dtype.is_signed else 1)).float()


def rate_of(fps: float | Fraction | None) -> Fraction:
    """Frames per second, exactly: 29.97 is 30000/1001."""
    if not fps or not 0.001 <= fps <= FASTEST:
        raise UserError(f"The frame rate is {float(fps or 0):g} and must be above 0, at most {FASTEST}; {FPS_HINT}.")
    return exact_rate(fps)


def in_order(images: Tensor, timeline: Timeline) -> Tensor:
    """The frames that a timeline shows; nothing is copied where they are the first ones in their own order."""
    if timeline.frames <= timeline.source_frames:
        return images if timeline.frames == len(images) else images[: timeline.frames]
    return images.index_select(0, torch.tensor(list(timeline.source_indices()), device=images.device))


def sound_for(audio: Mapping[str, Any], timeline: Timeline) -> Mapping[str, Any]:
    """An AUDIO exactly as long as the picture, to the sample: cut, or followed by silence."""
    waveform, rate = torch.as_tensor(audio["waveform"]), int(audio["sample_rate"])
    wanted = max(1, round(timeline.duration * rate))
    if waveform.shape[-1] == wanted:
        return audio
    silence = max(0, wanted - waveform.shape[-1])
    return {**audio, "waveform": F.pad(waveform[..., :wanted], (0, silence)) if silence else waveform[..., :wanted]}

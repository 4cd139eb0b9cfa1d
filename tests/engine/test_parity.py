"""The renderer as the public code does it, against the published recipe composed by hand from independent parts."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from latentsync.audio.whisper_features import encode_audio
from latentsync.face.align import align_matrices, face_size
from latentsync.face.choose import choose
from latentsync.face.detect import three_points
from latentsync.face.mask import latent_mask, mouth_mask
from latentsync.face.track import find_tracks
from latentsync.media.source import ArraySource
from latentsync.pipeline import Timings, WindowRenderer, render
from latentsync.prepared import track_face
from latentsync.settings import Settings
from latentsync.timeline import Timeline

from ..tiny import RATE, pan, speech, tiny_models

FPS, FRAMES, STEPS, GUIDANCE, SEED = 25, 16, 3, 1.5, 1247


@pytest.fixture(scope="module", params=["epsilon", "sample"])
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with tiny_models(folder, prediction_type=request.param) as models:
        yield models


def crops_of(frames, matrices, side):
    """Bilinear warp with gray outside, cut off to bytes; Lanczos to a square."""
    for frame, matrix in zip(frames, matrices, strict=True):
        upright = cv2.warpAffine(
            frame.astype(np.float32), matrix, face_size(side), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127)
        )
        yield cv2.resize(upright.astype(np.uint8), (side, side), interpolation=cv2.INTER_LANCZOS4)


def tokens_of(sound, whisper, frames):
    """Rows c - 4 ... c + 5 around c = int(i * 50 / fps), clamped to the clip, layers side by side."""
    rows = encode_audio(sound, RATE, whisper, exact=True)
    centers = [int(i * 50 / FPS) for i in range(frames)]
    return torch.stack([torch.cat([rows[min(max(c + k, 0), len(rows) - 1)] for k in range(-4, 6)]) for c in centers])[
        None
    ]


def sample(unet, noise, conditions, audio, prediction):
    """Guided DDIM by diffusers."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading", prediction_type=prediction,
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    latents = noise
    for t in scheduler.timesteps:
        inputs = torch.cat((latents, *conditions), 1)
        without, heard = unet(inputs, t, torch.zeros_like(audio)), unet(inputs, t, audio)
        latents = scheduler.step(without + GUIDANCE * (heard - without), t, latents).prev_sample
    return latents


def pasted(frame, face, matrix, side):
    """The seam of the published code: the warped box, eroded twice, blurred, over the whole frame."""
    small = torch.nn.functional.interpolate(
        torch.from_numpy(face).permute(2, 0, 1)[None], face_size(side)[::-1], mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    size, flags = frame.shape[1::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    box = cv2.warpAffine(np.ones(small.shape[:2], np.float32), matrix, size, flags=flags)
    box = cv2.erode(box, np.ones((2, 2), np.uint8))
    edge = int(box.sum() ** 0.5) // 20
    soft = cv2.erode(box, np.ones((max(1, 2 * edge),) * 2, np.uint8))
    soft = cv2.GaussianBlur(soft, (2 * edge + 1,) * 2, 0)[..., None]
    placed = cv2.warpAffine(small.numpy(), matrix, size, flags=flags).clip(0, 255) * box[..., None]
    return (soft * placed + (1 - soft) * frame).clip(0, 255)


@torch.inference_mode()
def by_hand(frames, sound, models):
    side, vae = models.resolution, models.vae
    track = choose(find_tracks(frames, models.finder), "largest")
    matrices = align_matrices(three_points(track.landmarks), side, reference=True)
    crops = np.stack(list(crops_of(frames, matrices, side)))
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    keep = torch.from_numpy(mouth_mask(side))
    masked, reference = (vae.encode(p).transpose(0, 1)[None] for p in (pixels * keep, pixels))
    cells = torch.from_numpy(latent_mask(side, vae.factor)).expand(1, 1, len(frames), -1, -1)
    generator = torch.Generator("cpu").manual_seed(SEED)
    noise = torch.randn((1, vae.channels, 1, side // vae.factor, side // vae.factor), generator=generator)
    noise = noise.expand(-1, -1, len(frames), -1, -1)
    audio = tokens_of(sound, models.whisper, len(frames))
    latents = sample(models.unet, noise, (cells, masked, reference), audio, models.unet.config.prediction_type)
    made = vae.decode(latents[0].transpose(0, 1)).clamp(-1, 1) * (1 - keep) + pixels * keep
    faces = ((made + 1) * 127.5).permute(0, 2, 3, 1).contiguous().numpy()
    return np.stack([pasted(f, face, m, side) for f, face, m in zip(frames, faces, matrices, strict=True)])


def rendered(frames, sound, models, *, reference):
    settings = Settings(steps=STEPS, guidance=GUIDANCE, seed=SEED)
    source, timeline = ArraySource(frames), Timeline(Fraction(FPS), len(frames), len(frames), "trim")
    tracked = track_face(source, timeline, models.finder, "largest", Timings())
    renderer = WindowRenderer(timeline, tracked.track, sound, models, settings, Timings(), reference=reference)
    made = render(source, renderer)
    return np.stack([frame for frame, _ in made])


def test_reference_from_end_to_end(models):
    frames, sound = pan(FRAMES), speech(FRAMES / FPS)
    made, wanted = rendered(frames, sound, models, reference=True), by_hand(frames, sound, models)
    assert (made != frames).any(-1).mean() > 0.1
    assert np.abs(made - wanted).max() <= 1.01  # bytes are cut off there, not rounded
    assert np.abs(made - wanted).mean() < 0.5
    ours = rendered(frames, sound, models, reference=False)
    assert np.abs(ours - wanted).max() > 10  # the switch does something

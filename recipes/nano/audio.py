"""What the training hears: audio tokens of a moment in one of several voices, whitened."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.audio.whisper_features import audio_windows, encode_audio
from latentsync.models.whisper import WhisperEncoder

from .data import Person
from .puppets import Speech

P_OWN_VOICE = 0.4
"""Chance of the original audio instead of another voice of the clip."""


class Voices:
    """voices(person, frame, random): (50, D) float32 whitened tokens of a moment of speech, see puppets.Speech."""

    def __init__(self, people: Sequence[Person], silence: Tensor) -> None:
        """silence: (50, D) tokens."""
        self.people, self.silence = people, silence
        self.whitening = audio_whitening([p for p in people if p.speaks])

    def __call__(self, person: int, frame: int, random: np.random.Generator) -> Tensor:
        if person == Speech.SILENT:
            return self.silence @ self.whitening.T
        who = self.people[person]
        others = who.voices if random.random() >= P_OWN_VOICE else ()
        audio = others[int(random.integers(len(others)))] if others else who.audio
        return torch.from_numpy(audio[frame]).float() @ self.whitening.T


def silent_tokens(whisper: WhisperEncoder, rate: int = 16000) -> Tensor:
    """(50, D): what the middle of four seconds without a sound gives."""
    features = encode_audio(torch.zeros(4 * rate), rate, whisper)
    return audio_windows(features, 25, 100)[50].float()


def audio_whitening(speakers: Sequence[Person], layers: int = 5, floor: float = 1.0) -> Tensor:
    """(D, D) matrix that whitens audio tokens: no mean in any layer, no direction much stronger than the others.

    Whisper's states are dominated by a constant and by one direction 300 times as strong as the mean; with these
    nothing is learned of the speech. Directions weaker than floor times the mean power stay weak, since they differ
    between recordings more than between sounds. The matrix can be folded into the projection's weights afterwards (they
    have no bias, hence a projection and no subtraction), so that the file takes plain tokens.
    """
    tokens = torch.cat([
        torch.from_numpy(p.audio[: p.train_frames : 4]).float().unflatten(1, (-1, layers))[:, 5] for p in speakers
    ])  # fmt: skip
    mean = tokens.mean(0)
    basis, _ = torch.linalg.qr(mean.T)
    without_mean = torch.eye(mean.shape[1]) - basis @ basis.T
    centered = (tokens - mean).flatten(0, 1) @ without_mean
    power, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    std = (power.clamp(min=0) + floor * power.mean()).sqrt()
    matrix = directions / std @ directions.T @ without_mean
    return matrix / (centered @ matrix.T).std()


def fold_whitening(mix: Tensor, whitening: Tensor) -> Tensor:
    """The weight of AudioProjection.mix for plain tokens."""
    return (mix.unflatten(1, (-1, len(whitening))) @ whitening).flatten(1)

"""Teach a U-Net that was told shapes of lips to hear speech.

The U-Net gets one token for a moment: a linear function (`teller`) of the shape of the lips. Here a projection of the
audio tokens learns the shape by ridge regression; put before the teller it makes the same token of speech. What speech
leaves open comes out as a middling shape, not as a blur. A U-Net that learned to hear and to draw at once heard nothing
after 5,000 steps. The projection is linear, since there are minutes of speech, not hours: attention to the tokens,
small networks and kernels heard people no better, or worse, whom they had not met. Nor did it help to hear the same
speech at other pitches or in noise.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latentsync.audio.whisper_features import audio_windows, encode_audio
from latentsync.files import atomic_path
from latentsync.models.unet_blocks import AUDIO_LAYERS, AUDIO_TIMES, AudioProjection
from latentsync.models.whisper import WhisperEncoder

from .data import Person
from .unet import Shapes


@dataclass(frozen=True)
class HearingTraining:
    """directions: how many of the states of one time are listened to, the strongest. ridge: its strength, over the mean
    power in these. rank: of the projection of one time. pauses, silence, nothing: weights of pauses amid speech, of
    silence alone, and of no tokens at all, which guidance takes: it has the mean shape. All speech has 1. gain: what
    was learned is enlarged by it, since a mean of all that is possible moves less than lips do. closed: the shape of
    silence over that of closed lips, less than 1 since gain enlarges it, too."""

    directions: int = 320
    ridge: float = 2.0
    rank: int = 48
    pauses: float = 0.1
    silence: float = 0.1
    nothing: float = 0.05
    gain: float = 2.0
    closed: float = 0.75


class Hearing:
    """A projection from audio tokens (N, 50, D) to shapes (N, 1, K), fitted to the people who speak.

    silence: (50, D) tokens. A person's weight grows as the root of their time: one speaks for half of it all.
    """

    def __init__(
        self, people: Sequence[Person], shapes: Shapes, silence: Tensor, settings: HearingTraining | None = None
    ) -> None:
        self.settings = settings = settings or HearingTraining()
        speakers = [people[i] for i in shapes.spoken]
        directions = audio_directions(speakers, settings.directions)
        heard = [p.audio[: p.train_frames] for p in speakers] + [p.pauses for p in speakers]
        said = _weights([p.identity for p in speakers for _ in range(p.train_frames)])
        paused = settings.pauses * _weights([p.identity for p in speakers for _ in p.pauses])
        tokens = [*(torch.from_numpy(part) for part in heard), silence[None], torch.zeros_like(silence)[None]]
        closed = settings.closed * shapes.silent.expand(len(paused) + 1, -1)
        solution, bias = ridge(
            torch.cat([_listened(part, directions) for part in tokens]).double(),
            torch.cat((*shapes.spoken.values(), closed, torch.zeros_like(closed[:1]))).double(),
            torch.cat((said, paused, torch.tensor([settings.silence, settings.nothing]))).double(),
            settings.ridge,
        )
        self.projection = _low_rank(solution.float(), bias.float(), directions, settings.rank)

    @torch.no_grad()
    def state(self, teller: nn.Linear) -> dict[str, Tensor]:
        """The tensors of the U-Net's audio_projection."""
        gain, out = self.settings.gain, self.projection.out
        return {
            "mix.weight": self.projection.mix.weight.clone(),
            "out.weight": gain * teller.weight @ out.weight,
            "out.bias": teller(gain * out.bias),
        }


def audio_directions(speakers: Sequence[Person], count: int) -> Tensor:
    """(count, L · D): the strongest directions of the states of one time, each made about as strong as the others.

    Whisper's states are dominated by a constant, which is projected out, and by one direction 300 times as strong as
    the mean.
    """
    states = torch.cat(
        [_states(torch.from_numpy(p.audio[: p.train_frames : 4]))[:, AUDIO_TIMES // 2] for p in speakers]
    )
    mean = states.mean(0)
    constant = (mean / mean.norm())[:, None]
    states = states - mean
    states = states - states @ constant @ constant.T
    power, directions = torch.linalg.eigh(states.T @ states / len(states))
    power, directions = power.flip(0).clamp(min=0), directions.flip(1).T
    return directions[:count] / (power[:count] + power.mean()).sqrt()[:, None]


def ridge(inputs: Tensor, wanted: Tensor, weight: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weighted least squares of wanted (N, K) from inputs (N, M): (M, K) and a bias (K,), which has no penalty.

    strength: over the mean power of the inputs."""
    share = (weight / weight.sum())[:, None]
    mean_in, mean_out = (share * inputs).sum(0), (share * wanted).sum(0)
    inputs, wanted = inputs - mean_in, wanted - mean_out
    power = inputs.T @ (share * inputs)
    power += strength * power.diagonal().mean() * torch.eye(len(power), dtype=power.dtype)
    solution = torch.linalg.solve(power, inputs.T @ (share * wanted))
    return solution, mean_out - mean_in @ solution


def silent_tokens(whisper: WhisperEncoder, rate: int = 16000) -> Tensor:
    """(50, D): what the middle of four seconds without a sound gives."""
    features = encode_audio(torch.zeros(4 * rate), rate, whisper)
    return audio_windows(features, 25, 100)[50].float()


def _states(tokens: Tensor) -> Tensor:
    """(N, 50, D) tokens to (N, 10, L · D)."""
    return tokens.float().unflatten(1, (AUDIO_TIMES, AUDIO_LAYERS)).flatten(2)


def _listened(tokens: Tensor, directions: Tensor) -> Tensor:
    """(N, 50, D) tokens to (N, 10 · M)."""
    return torch.cat([(_states(part) @ directions.T).flatten(1) for part in tokens.split(256)])


def _weights(whose: Sequence[str]) -> Tensor:
    """Of each moment, 1 in all; a person's grow as the root of their time."""
    times = Counter(whose)
    weights = torch.tensor([times[name] ** -0.5 for name in whose])
    return weights / weights.sum()


@torch.no_grad()
def _low_rank(solution: Tensor, bias: Tensor, directions: Tensor, rank: int) -> AudioProjection:
    """The best of that rank that listens at all ten times to the same. solution: (10 · M, K)."""
    by_time = solution.unflatten(0, (AUDIO_TIMES, -1)).movedim(1, 0).flatten(1)  # (M, 10 · K)
    left, strength, right = torch.linalg.svd(by_time, full_matrices=False)
    rank = min(rank, len(strength))
    root = strength[:rank].sqrt()
    projection = AudioProjection(directions.shape[1] // AUDIO_LAYERS, rank, len(bias), nn)
    projection.mix.weight.copy_((left[:, :rank] * root).T @ directions)
    out = (root[:, None] * right[:rank]).unflatten(1, (AUDIO_TIMES, -1))  # (rank, 10, K)
    projection.out.weight.copy_(out.permute(2, 1, 0).flatten(1))
    projection.out.bias.copy_(bias)
    return projection


def teach_hearing(checkpoint: Path, hearing: Hearing, path: Path) -> None:
    """Add hearing to the averaged U-Net of a checkpoint of UNetTrainer; write what `export` needs to path."""
    saved = torch.load(checkpoint, weights_only=True)
    weight = saved["teller"]["weight"]
    teller = nn.Linear(weight.shape[1], weight.shape[0])
    teller.load_state_dict(saved["teller"])
    heard = {f"audio_projection.{name}": value for name, value in hearing.state(teller).items()}
    kept = {name: saved[name] for name in ("settings", "step", "average_decoder")}
    with atomic_path(path) as unfinished:
        torch.save({**kept, "unet": saved["average"] | heard}, unfinished)

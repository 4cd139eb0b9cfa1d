"""Several people of one clip, each with a voice of their own."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..media.opening import file_url
from ..media.samples import Piece, resampled
from ..media.sound import Sound
from .load import check_speech, load_audio
from .mel import SAMPLE_RATE

MIX_RATE, WIDTH = 48000, 8  # bytes of two float32


@dataclass(frozen=True)
class Speaker:
    """face: as Settings.face. voice: a file with sound. start: seconds of the clip at which it begins."""

    face: str
    voice: str | Path
    start: Fraction = Fraction(0)

    @classmethod
    def parse(cls, text: str) -> "Speaker":
        """From "face=voice", or "face=voice@seconds" for a voice that begins later. UserError where it is not that."""
        face, equals, voice = text.partition("=")
        if not (face.strip() and equals and voice.strip()):
            raise UserError(
                f'speaker is {text!r}; give a face and its voice, such as "left=anna.wav" or "1=ben.wav@3.5".'
            )
        later = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)", voice.strip())
        if later and not Path(voice.strip()).exists():
            return cls(face.strip(), later[1], Fraction(later[2]))
        return cls(face.strip(), voice.strip())

    def heard(self) -> Tensor:
        """(T,) at 16 kHz, from the clip's first frame on."""
        speech = load_audio(self.voice)
        check_speech(speech.waveform, str(self.voice))
        return torch.nn.functional.pad(speech.waveform, (round(self.start * SAMPLE_RATE), 0))


@contextmanager
def mixed(speakers: Sequence[Speaker]) -> Iterator[Path]:
    """A temporary sound file of all voices together, as long as the last of them. Memory does not grow with it."""
    if not speakers:
        raise UserError("There are no speakers; give at least one face and its voice.")
    with TemporaryDirectory() as folder:
        raw, mix = Path(folder) / "voices", Path(folder) / "voices.wav"
        raw.touch()
        peak = max(_add(speaker, raw) for speaker in speakers)
        _write_wav(raw, mix, 1 / max(1.0, peak))  # together they may be louder than a file can hold
        raw.unlink()
        yield mix


def _add(speaker: Speaker, raw: Path) -> float:
    """One voice added to the samples of a file, float32 in pairs; the loudest of what was written."""
    peak = 0.0
    with Sound(speaker.voice) as sound, raw.open("r+b") as file:
        at = round(speaker.start * MIX_RATE) * WIDTH
        for block in resampled(map(_doubled, sound.pieces()), MIX_RATE, "stereo", "flt", ":rematrix_maxval=1"):
            file.seek(at)
            there = np.frombuffer(file.read(block.nbytes), np.float32)
            total = block.ravel().copy()
            total[: len(there)] += there
            file.seek(at)
            file.write(total.tobytes())
            at += block.nbytes
            peak = max(peak, float(np.abs(total).max(initial=0)))
    return peak


def _doubled(piece: Piece) -> Piece:
    """Mono as stereo: FFmpeg makes it 3 dB quieter than it is."""
    mono = piece.samples.shape[1] == 1
    return replace(piece, samples=np.repeat(piece.samples, 2, 1), layout="stereo") if mono else piece


def _write_wav(raw: Path, path: Path, gain: float) -> None:
    with raw.open("rb") as file, av.open(file_url(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=MIX_RATE, layout="stereo")
        while block := file.read(MIX_RATE * WIDTH):
            samples = np.rint(np.frombuffer(block, np.float32) * (gain * 32767)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="stereo")
            frame.sample_rate = MIX_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

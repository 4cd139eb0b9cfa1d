"""How often is a shift of the sound found? Pieces of prepared clips, moved by -6 … +6 frames.

python -m benchmarks.offsets SYNCNET PREPARED --held-out 0.25 --except anna,ben
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.evaluation.clips import margin_of, prepared_clips
from latentsync.evaluation.syncnet_sync import FPS, sync_offset
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.models.syncnet import StableSyncNet
from latentsync.weights.syncnet_files import load_syncnet

SHIFT = 6
SECONDS = (1.2, 2.0, 3.0, 5.0)
HOP = SAMPLE_RATE // int(FPS)


def pieces(frames: int, part: tuple[float, float], sound: int, length: int) -> Iterator[int]:
    """First frames of pieces that overlap by half, with sound for every shift."""
    low, high = (round(share * frames) for share in part)
    for start in range(low, high - length + 1, length // 2):
        if start >= SHIFT and (start + length + SHIFT) * HOP <= sound:
            yield start


def misses(net: StableSyncNet, path: Path, part: tuple[float, float]) -> Iterator[tuple[float, list[int]]]:
    """(seconds, found minus true shift for each shift) of every piece of a clip."""
    info, margin = probe(path), margin_of(path)
    wave = load_audio(path, info.start).waveform
    inner = slice(margin, -margin or None)
    with VideoReader(info) as reader:
        faces = [frame[inner, inner] for frame in reader.read(range(info.frames))]
    for seconds in SECONDS:
        length = round(seconds * FPS)
        for start in pieces(len(faces), part, len(wave), length):
            yield seconds, [_miss(net, faces, wave, start, length, shift) for shift in range(-SHIFT, SHIFT + 1)]


def _miss(net: StableSyncNet, faces: list[np.ndarray], wave: Tensor, start: int, length: int, shift: int) -> int:
    sound = wave[(start - shift) * HOP : (start - shift + length) * HOP]
    return sync_offset(net, faces[start : start + length], sound).offset - shift


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("syncnet")
    ask.add_argument("prepared", type=Path)
    ask.add_argument("--held-out", type=float, default=1.0, help="share of every clip that is used, in its middle")
    ask.add_argument("--only", default="", help="recordings whose names begin so (anna,ben)")
    ask.add_argument("--except", dest="without", default="", help="not those whose names begin so")
    ask.add_argument("--threads", type=int, default=1)
    said = ask.parse_args()
    torch.set_num_threads(said.threads)
    net = load_syncnet(said.syncnet)
    assert isinstance(net, StableSyncNet)
    low = (1 - said.held_out) / 2
    found: dict[float, list[int]] = defaultdict(list)
    names = ([n for n in text.split(",") if n] for text in (said.only, said.without))
    for path in prepared_clips(said.prepared, *names):
        for seconds, off in misses(net, path, (low, low + said.held_out)):
            found[seconds] += off
    print("| seconds | pieces | exact | within 1 frame |\n|---|---|---|---|")
    for seconds, off in sorted(found.items()):
        apart = abs(np.array(off))
        share = f"{(apart == 0).mean():.0%} | {(apart <= 1).mean():.0%}"
        print(f"| {seconds:g} | {len(off) // (2 * SHIFT + 1)} | {share} |")


if __name__ == "__main__":
    main()

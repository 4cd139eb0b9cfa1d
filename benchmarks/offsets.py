"""How often is a shift of the sound found? Segments of prepared clips, moved by -6 … +6 frames.

python -m benchmarks.offsets SYNCNET PREPARED --holdout-time 0.25 --holdout-people anna,ben
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.dataset import FPS, ClipFile, find_clips, holdout_part
from latentsync.evaluation.syncnet_sync import sync_offset
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.models.syncnet import StableSyncNet
from latentsync.weights.syncnet_files import load_syncnet

SHIFT = 6
SECONDS = (1.2, 2.0, 3.0, 5.0)
HOP = SAMPLE_RATE // int(FPS)


def segments(low: int, high: int, sound: int, length: int) -> Iterator[int]:
    """First frames of segments that overlap by half, with audio for every shift."""
    for start in range(low, high - length + 1, length // 2):
        if start >= SHIFT and (start + length + SHIFT) * HOP <= sound:
            yield start


def misses(net: StableSyncNet, clip: ClipFile) -> Iterator[tuple[float, list[int]]]:
    """(seconds, found minus true shift for each shift) of every segment of a clip."""
    info = probe(clip.path)
    wave = load_audio(clip.path, info.start).waveform
    with VideoReader(info) as reader:
        faces = [clip.crop(frame) for frame in reader.read(range(info.frames))]
    for seconds in SECONDS:
        length = round(seconds * FPS)
        for start in segments(*clip.span(len(faces)), len(wave), length):
            yield seconds, [_miss(net, faces, wave, start, length, shift) for shift in range(-SHIFT, SHIFT + 1)]


def _miss(net: StableSyncNet, faces: list[np.ndarray], wave: Tensor, start: int, length: int, shift: int) -> int:
    sound = wave[(start - shift) * HOP : (start - shift + length) * HOP]
    return sync_offset(net, faces[start : start + length], sound).offset - shift


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("syncnet")
    ask.add_argument("prepared", type=Path)
    ask.add_argument("--holdout-time", type=float, default=1.0, help="share of every clip that is used, in its middle")
    ask.add_argument("--only", default="", help="recordings with these name prefixes (anna,ben)")
    ask.add_argument("--holdout-people", default="", help="not those with these prefixes")
    ask.add_argument("--threads", type=int, default=1)
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    net = load_syncnet(args.syncnet)
    assert isinstance(net, StableSyncNet)
    found: dict[float, list[int]] = defaultdict(list)
    only, left = ([n for n in text.split(",") if n] for text in (args.only, args.holdout_people))
    for clip in find_clips(args.prepared):
        if (only and not clip.is_of(only)) or clip.is_of(left):
            continue
        for seconds, off in misses(net, replace(clip, part=holdout_part(args.holdout_time))):
            found[seconds] += off
    print("| seconds | segments | exact | within 1 frame |\n|---|---|---|---|")
    for seconds, off in sorted(found.items()):
        apart = abs(np.array(off))
        share = f"{(apart == 0).mean():.0%} | {(apart <= 1).mean():.0%}"
        print(f"| {seconds:g} | {len(off) // (2 * SHIFT + 1)} | {share} |")


if __name__ == "__main__":
    main()

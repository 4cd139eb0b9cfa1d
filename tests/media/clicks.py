"""Clips whose sound is clicks at known times, and where the clicks are in what was made of them."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

RATE = 48000
TIMES = (0.3, 0.7, 1.1, 1.9, 2.3, 2.7)
HOLE = (1.2, 1.8)
SECONDS = 3.0


def click_wave(times=TIMES, rate=RATE, seconds=SECONDS):
    """Soft bursts of 1 kHz, 4 ms wide."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.zeros(len(t)) + sum(
        0.6 * np.exp(-(((t - at) / 0.002) ** 2)) * np.cos(2 * np.pi * 1000 * (t - at)) for at in times
    )
    return wave.astype(np.float32)


def write_clicks(path, codec, *, hole=None, late=0.0, jitter=0.0, layout="stereo", rate=RATE, wave=None, damage=None):
    """hole: seconds without packets. late: of all stamps. jitter: of each stamp, at most. damage: seconds in which the
    packets are overwritten."""
    wave = click_wave(rate=rate) if wave is None else wave
    channels, random = av.AudioLayout(layout).nb_channels, np.random.default_rng(0)
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.bit_rate = 128_000
        size, last = stream.codec_context.frame_size or 960, -(10**9)
        packets: list[Any] = []
        for start in range(0, len(wave), size):
            block = np.ascontiguousarray(np.repeat(wave[start : start + size, None], channels, 1).reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode(None)]:
            time = float(packet.pts * packet.time_base)
            if hole and hole[0] <= time < hole[1]:
                continue
            if damage and damage[0] <= time < damage[1]:
                packet = broken(packet)
            moved = (packet.pts or 0) + round((late + random.uniform(-jitter, jitter)) / packet.time_base)
            packet.pts = packet.dts = last = max(moved, last + 1)
            packet.stream = stream
            container.mux(packet)
    return path


def broken(packet):
    """The same packet with other bytes in it."""
    other = av.Packet(b"\xff" * packet.size)
    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
    if packet.duration:
        other.duration = packet.duration
    return other


def heard_in(path, stream=0):
    """Samples of the first channel as a player that goes by the stamps plays them, from time 0 of the file; and rate.
    Written anew here, by packets, so that it shares nothing with what it checks."""
    with av.open(f"file:{path}") as container:
        track: Any = container.streams.audio[stream]
        rate = track.codec_context.sample_rate
        wave, due = np.zeros(rate * 20), 0
        for packet in container.demux(track):
            try:
                frames: list[Any] = list(packet.decode())
            except FFmpegError:
                continue
            for frame in frames:
                block = frame.to_ndarray()
                block = block[0] if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels)[:, 0]
                if block.dtype.kind == "i":
                    block = block / 2 ** (8 * block.dtype.itemsize - 1)
                at = round(float(frame.pts * track.time_base) * rate)
                at = due if abs(at - due) < 0.005 * rate else at
                cut, due = max(0, -at), at + len(block)
                wave[at + cut : at + len(block)] = block[cut:]
    return wave, rate


def click_times(wave, rate):
    """Seconds at which clicks are: middles of the bursts above a fifth of the loudest."""
    wave = np.asarray(wave, np.float64)
    strength = np.convolve(wave**2, np.ones(rate // 250), "same")
    loud = np.flatnonzero(strength > 0.2 * strength.max())
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > rate // 50) + 1)
    return [float((group * strength[group]).sum() / strength[group].sum() / rate) for group in groups]


def picture_start(path):
    with av.open(f"file:{path}") as container:
        stream: Any = container.streams.video[0]
        first: Any = next(container.decode(stream))
        return float(first.pts * stream.time_base)

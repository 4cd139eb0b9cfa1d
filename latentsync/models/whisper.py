"""The encoder half of Whisper: its hidden states are what the U-Net hears. The decoder is never read."""

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import UserError

MELS = 80
POSITIONS = 1500
"""Hidden states of one 30-second window: 3000 mel frames, halved by the second convolution."""
HEAD_DIM = 64
"""Width of one attention head, the same in every published Whisper."""
MAX_LAYERS = 32
"""Blocks of the largest published Whisper; a file that names more would have us build them."""

State = dict[str, Tensor]

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pt")
_HF_PREFIXES = ("model.encoder.", "encoder.", "")
# Names inside a block: (ours and Hugging Face's, OpenAI's, CTranslate2's).
_BLOCK_NAMES = (
    ("self_attn_layer_norm", "attn_ln", "self_attention/layer_norm"),
    ("self_attn.out_proj", "attn.out", "self_attention/linear_1"),
    ("final_layer_norm", "mlp_ln", "ffn/layer_norm"),
    ("fc1", "mlp.0", "ffn/linear_0"),
    ("fc2", "mlp.2", "ffn/linear_1"),
)
_QKV = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
_CT2_DTYPES = {0: torch.float32, 4: torch.float16, 5: torch.bfloat16}
_CT2_VERSIONS = range(4, 7)


class WhisperEncoder(nn.Module):
    """Called with log-mel (B, 80, 3000), answers (B, 1500, layers + 1, dim).

    The hidden states are those after the convolutions and positions, then after each block, all before the final norm
    (which is therefore not kept).
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim, self.layers, hidden = _shape_of(state)
        self.encoder = _empty_encoder(self.dim, self.layers, hidden)
        _load_strictly(self.encoder, state)
        # transformers puts the final norm on the last hidden state; LatentSync listens before it.
        self.encoder.layer_norm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    def forward(self, mel: Tensor) -> Tensor:
        states = self.encoder(mel, output_hidden_states=True, return_dict=True).hidden_states
        return torch.stack(tuple(states), dim=2)


def load_whisper(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> WhisperEncoder:
    """Encoder from a known name ("tiny", "tiny.en") or from a file or folder.

    Read are OpenAI's .pt, the Hugging Face layout (safetensors or .bin, or their folder), CTranslate2's model.bin and
    our own converted safetensors. Raises UserError when the file is anything else.
    """
    path = _resolve(name_or_path)
    state = {key: tensor.to(dtype, copy=True) for key, tensor in read_encoder(path).items()}
    try:
        encoder = WhisperEncoder(state)
    except UserError as error:
        raise UserError(f"{path} is not a usable Whisper encoder: {error}") from error
    return encoder.to(device).eval().requires_grad_(False)


def read_encoder(path: str | os.PathLike[str]) -> State:
    """The encoder's tensors of any readable file, in the Hugging Face layout without prefix, in the stored dtype."""
    path = _file_in(Path(path))
    kind = _kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "ctranslate2":
        return convert_ctranslate2(path)
    return _read_pickle(path, zipped=kind == "zip")


def convert_openai(state: Mapping[str, Tensor]) -> State:
    """Encoder tensors in OpenAI's names ("encoder.blocks.0.attn.query.weight") to the Hugging Face names."""
    names = {"encoder.ln_post": "layer_norm", "encoder.conv1": "conv1", "encoder.conv2": "conv2"}
    for i in range(_count(state, r"encoder\.blocks\.(\d+)\.")):
        names |= {f"encoder.blocks.{i}.{theirs}": f"layers.{i}.{ours}" for ours, theirs, _ in _BLOCK_NAMES}
        names |= {f"encoder.blocks.{i}.attn.{theirs}": f"layers.{i}.self_attn.{ours}" for ours, theirs in _QKV}
    out: State = {}
    for key, tensor in state.items():
        if key == "encoder.positional_embedding":
            out["embed_positions.weight"] = tensor
        elif key.startswith("encoder."):
            stem, _, leaf = key.rpartition(".")
            out[f"{names.get(stem, stem)}.{leaf}"] = tensor
    return out


def convert_ctranslate2(path: str | os.PathLike[str]) -> State:
    """The encoder of a CTranslate2 Whisper (model.bin, not quantised) in the Hugging Face names."""
    try:
        with Path(path).open("rb") as file:
            parts = dict(_ctranslate2_encoder(file))
    except UserError:
        raise
    except (struct.error, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is a damaged CTranslate2 file; download it again.") from error
    names = {"layer_norm": "layer_norm", "conv1": "conv1", "conv2": "conv2"}
    out: State = {}
    for i in range(_count(parts, r"layer_(\d+)/")):
        names |= {f"layer_{i}/{theirs}": f"layers.{i}.{ours}" for ours, _, theirs in _BLOCK_NAMES}
        out |= _split_qkv(parts, i)
    for key, tensor in parts.items():
        stem, _, leaf = key.rpartition("/")
        if stem in names:
            out[f"{names[stem]}.{ {'gamma': 'weight', 'beta': 'bias'}.get(leaf, leaf) }"] = tensor
    if "position_encodings/encodings" in parts:
        out["embed_positions.weight"] = parts["position_encodings/encodings"]
    return out


def _split_qkv(parts: Mapping[str, Tensor], block: int) -> State:
    out: State = {}
    for leaf in ("weight", "bias"):
        stacked = parts.get(f"layer_{block}/self_attention/linear_0/{leaf}")
        if stacked is None or stacked.shape[0] % 3:
            continue
        for (ours, _), piece in zip(_QKV, stacked.chunk(3), strict=True):
            # Whisper's keys have no bias; CTranslate2 fills the gap with zeros.
            if (ours, leaf) != ("k_proj", "bias"):
                out[f"layers.{block}.self_attn.{ours}.{leaf}"] = piece.contiguous()
    return out


def _ctranslate2_encoder(file: BinaryIO) -> Iterator[tuple[str, Tensor]]:
    """(name below "encoder/", tensor) of each floating-point tensor; the decoder is skipped unread."""
    version, name = _unpack(file, "I"), _ct2_string(file)
    if name != "WhisperSpec" or version not in _CT2_VERSIONS:
        raise UserError(f"this is a CTranslate2 file of kind {name}, version {version}; a Whisper model is needed.")
    _unpack(file, "I")
    for _ in range(_unpack(file, "I")):
        key = _ct2_string(file)
        shape = [_unpack(file, "I") for _ in range(_unpack(file, "B"))]
        dtype, size = _unpack(file, "B"), _unpack(file, "I")
        if not key.startswith("encoder/") or not shape:
            file.seek(size, os.SEEK_CUR)
        elif dtype in _CT2_DTYPES:
            yield key.removeprefix("encoder/"), _ct2_tensor(file, shape, _CT2_DTYPES[dtype], size)
        else:
            raise UserError("this CTranslate2 model is quantised to integers; a float16 or float32 one is needed.")


def _ct2_tensor(file: BinaryIO, shape: list[int], dtype: torch.dtype, size: int) -> Tensor:
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError("a tensor's size does not follow from its shape")
    return torch.frombuffer(bytearray(file.read(size)), dtype=dtype).view(shape)


def _ct2_string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "H")).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _count(state: Mapping[str, Any], pattern: str) -> int:
    """How many blocks the keys speak of."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.exists():
        return path
    if path.name == str(name_or_path) and path.suffix not in _SUFFIXES:
        from ..weights import find

        return find(path.name)
    raise UserError(f"There is no Whisper file at {path}; give a file, a folder, or a known name such as tiny.")


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"The folder {path} holds no Whisper weights; one of {', '.join(_FOLDER_FILES)} is needed.")


def _kind_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable Whisper file.") from error
    if head[:4] == b"PK\3\4":
        return "zip"
    if head[:1] == b"\x80":
        return "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    if b"Spec\0" in head and head[1:4] == b"\0\0\0":
        return "ctranslate2"
    raise _not_whisper(path)


def _not_whisper(path: Path) -> UserError:
    return UserError(f"{path} is not a Whisper model; OpenAI's, Hugging Face's or CTranslate2's file is needed.")


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = _encoder_keys(file.keys())
            state = {ours: file.get_tensor(theirs) for ours, theirs in keys.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}); download it again.") from error
    if not state:
        raise _not_whisper(path)
    return state


def _read_pickle(path: Path, *, zipped: bool) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        # torch raises half a dozen types here: a truncated zip, a foreign pickle, an unsafe one.
        raise UserError(
            f"{path} cannot be read as weights; it is damaged, or holds more than tensors (unsafe to load)."
        ) from error
    if not isinstance(content, Mapping):
        raise _not_whisper(path)
    openai = content.get("model_state_dict")
    if isinstance(openai, Mapping):
        return convert_openai(_tensors(openai))
    tensors = _tensors(content)
    keys = _encoder_keys(tensors)
    if not keys:
        raise _not_whisper(path)
    return {ours: tensors[theirs] for ours, theirs in keys.items()}


def _tensors(content: Mapping[Any, Any]) -> State:
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _encoder_keys(names: Iterable[str]) -> dict[str, str]:
    """{name inside the encoder: name in the file}, empty when this is no Hugging Face Whisper."""
    keys = set(names)
    for prefix in _HF_PREFIXES:
        if f"{prefix}conv1.weight" in keys and f"{prefix}embed_positions.weight" in keys:
            return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    return {}


def _shape_of(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(width, blocks, feed-forward width) from the tensors."""
    conv, wide = state.get("conv1.weight"), state.get("layers.0.fc1.weight")
    if conv is None or wide is None or conv.ndim != 3:
        raise UserError("conv1 or the first block is missing.")
    dim, mels = conv.shape[:2]
    if mels != MELS or dim % HEAD_DIM:
        raise UserError(
            f"it has {mels} mel bands and width {dim}; {MELS} bands and a multiple of {HEAD_DIM} are needed."
        )
    layers = _count(state, r"layers\.(\d+)\.")
    if layers > MAX_LAYERS:
        raise UserError(f"it names block {layers - 1}; Whisper has at most {MAX_LAYERS}.")
    return dim, layers, wide.shape[0]


def _empty_encoder(dim: int, layers: int, hidden: int) -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    config = WhisperConfig(
        num_mel_bins=MELS,
        d_model=dim,
        encoder_layers=layers,
        encoder_attention_heads=dim // HEAD_DIM,
        encoder_ffn_dim=hidden,
        max_source_positions=POSITIONS,
        decoder_layers=0,
    )
    # On "meta" nothing is allocated and the global random generator is left alone.
    with torch.device("meta"):
        return Encoder(config)


def _load_strictly(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    wrong = [key for key in wanted.keys() & state.keys() if wanted[key] != tuple(state[key].shape)]
    for problem, keys in (("missing", missing), ("not known", unknown), ("of another shape", sorted(wrong))):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise UserError(f"{problem}: {', '.join(keys[:5])}{more}.")
    encoder.load_state_dict(dict(state), strict=True, assign=True)

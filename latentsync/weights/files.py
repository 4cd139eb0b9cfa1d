"""Weight files read safely, headers first, and written as safetensors.

Nothing in a file is ever run: PyTorch files are opened with `weights_only`, and what is no tensor is refused.
"""

import json
import math
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path

Shape = tuple[int, ...]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

# fmt: off
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
# fmt: on
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_WRAPPERS = ("state_dict", "model_state_dict")
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # the number that starts a torch.save of before PyTorch 1.6


@dataclass(frozen=True)
class Header:
    """What is in a file, without its numbers. layout: "safetensors", "PyTorch" or "PyTorch (old)"."""

    path: Path
    layout: str
    shapes: dict[str, Shape]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_header(path: str | os.PathLike[str]) -> Header:
    """Names, shapes and dtypes of a weight file's tensors. UserError, in one sentence, for anything else."""
    path = Path(path)
    layout = detect_format(path)
    if layout == "safetensors":
        with _open_safetensors(path) as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            dtypes = {key: _DTYPES[part.get_dtype()] for key, part in slices.items()}
            return Header(path, layout, shapes, dtypes, file.metadata() or {})
    tensors = _read_torch(path, layout, "meta")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Header(path, layout, shapes, {key: tensor.dtype for key, tensor in tensors.items()})


def read_tensors(path: str | os.PathLike[str], keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors on the CPU, mapped from the file where the layout allows it, so reading them costs no memory."""
    path = Path(path)
    layout = detect_format(path)
    if layout == "safetensors":
        with _open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in (file.keys() if keys is None else keys)}
    tensors = _read_torch(path, layout, "cpu")
    return tensors if keys is None else {key: tensors[key] for key in keys}


def our_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file of ours; empty for any other file."""
    try:
        with _open_safetensors(Path(path)) as file:
            metadata = file.metadata() or {}
    except UserError:
        return {}
    return metadata if metadata.get("format") == "latentsync" else {}


def detect_format(path: Path) -> str:
    """ "safetensors", "PyTorch" or "PyTorch (old)". UserError with a reason when it is none of these."""
    head = read_head(path)
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    again = "download it again"
    if not head:
        raise UserError(f"{path} is an empty file; {again}.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file it points to; fetch it with `git lfs pull`.")
    if lower.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise UserError(f"{path} is a web page saved under a weight file's name; {again} from the file's own link.")
    if head.startswith(b"PK\x03\x04"):
        return _zip_layout(path)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _HEADER_LIMIT:
        return "safetensors"
    if head.startswith(b"\x80"):
        if _LEGACY_MAGIC in head[:32]:
            return "PyTorch (old)"
        raise UserError(f"{path} is a Python pickle, not weights; such a file can run code, so it was not opened.")
    is_text = b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    text = "a text file" if is_text else "not a weight file that is known here"
    raise UserError(f"{path} is {text}; a .safetensors file or a PyTorch .pt file is needed.")


def read_head(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the weight file in it.")
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}; check the name.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error


def _zip_layout(path: Path) -> str:
    names = zip_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript program, not weights; it was not opened because it can run code.")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive, not weights; unpack it and give the weight file in it.")
    return "PyTorch"


def file_in(path: Path, names: Sequence[str]) -> Path:
    """The first of these files in a folder; of a file, itself."""
    return next((path / name for name in names if (path / name).is_file()), path)


def zip_names(path: Path) -> list[str]:
    """What a zip archive holds. UserError when it is cut off or damaged."""
    try:
        if not zipfile.is_zipfile(path):
            size = path.stat().st_size
            raise UserError(f"{path} is cut off: its end is missing ({size:,} bytes are there); download it again.")
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeError, struct.error) as error:
        raise UserError(f"{path} is damaged ({error}); download it again.") from error


def _read_torch(path: Path, layout: str, device: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=layout == "PyTorch")
    except Exception as error:
        # torch raises half a dozen types here, one for each way of being unreadable.
        raise UserError(_why_refused(path, str(error))) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no named tensors, so it is not a model's weights.")
    return tensors


def _why_refused(path: Path, error: str) -> str:
    named = re.search(r"(?:GLOBAL |Unsupported class |Unsupported global: GLOBAL )([\w.]+\.\w+)", error)
    if named or "Weights only load failed" in error:
        what = f" ({named[1]})" if named else ""
        return (
            f"{path} asks for Python code{what} to be run when it is opened, so it was not opened; only files of plain"
            " tensors are read: get it from its original source."
        )
    return f"{path} is damaged and cannot be read as weights; download it again."


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except KeyError as error:
        raise UserError(f"{path} has numbers of a kind ({error}) not read here; give fp16, bf16 or fp32.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut off or damaged ({error}); download it again.") from error


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Write tensor by tensor (cast to `dtype` if it is a float), under another name until the file is whole."""
    path = Path(path)
    kinds = {key: dtype if dtype and t.is_floating_point() else t.dtype for key, t in tensors.items()}
    # Widest first keeps every tensor aligned to its own size, which readers that map the file want.
    order = sorted(tensors, key=lambda key: (-kinds[key].itemsize, key))
    header, total = _encode_header(tensors, kinds, order, metadata)
    _check_room(path, total)
    try:
        with atomic_path(path) as part, part.open("wb") as file:
            file.write(header)
            for key in order:
                file.write(_raw(key, tensors[key], kinds[key]))
                if on_progress:
                    on_progress(file.tell(), total)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); nothing was left there.") from error
    return path


def _encode_header(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, torch.dtype], order: list[str], metadata: Mapping[str, str]
) -> tuple[bytes, int]:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key in order:
        begin, end = end, end + tensors[key].numel() * kinds[key].itemsize
        entries[key] = {"dtype": _NAMES[kinds[key]], "shape": list(tensors[key].shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + end


def _raw(key: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    out = tensor.detach().to("cpu", dtype).contiguous()
    if dtype != tensor.dtype and not bool(torch.isfinite(out).all()):
        wrong = "does not fit" if bool(torch.isfinite(tensor).all()) else "holds values that are not numbers, before"
        raise UserError(f"The tensor {key} {wrong} {str(dtype).removeprefix('torch.')}; try bf16 or fp32.")
    return out.reshape(-1).view(torch.uint8).numpy().data


def _check_room(path: Path, needed: int) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of the file to write.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(f"{path} needs {needed:,} bytes and {path.parent} has {free:,} free; make room first.")


def mismatch(wanted: Mapping[str, Shape], got: Mapping[str, Shape]) -> str:
    """Which tensors are missing, unexpected or of another shape, five of each at most; "" when all agree."""
    wrong = [
        f"{key} is {_cross(got[key])} where {_cross(shape)} is needed"
        for key, shape in wanted.items()
        if got.get(key, shape) != shape
    ]
    groups = (
        ("missing", [k for k in wanted if k not in got]),
        ("not known", [k for k in got if k not in wanted]),
        ("of another shape", wrong),
    )
    more = {word: f" and {len(names) - 5} more" * (len(names) > 5) for word, names in groups}
    return "; ".join(f"{word}: {', '.join(names[:5])}{more[word]}" for word, names in groups if names)


def _cross(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a single number"


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}

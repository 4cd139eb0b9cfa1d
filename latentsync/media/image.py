"""Still pictures, and telling them from moving ones."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageColor, ImageOps

from ..errors import UserError, missing_package
from .opening import file_url, reason
from .profile import to_srgb

KINDS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM")
"""What Pillow may take a file for; all others that it knows are no photographs, or need programs of their own."""
OTHER_KINDS = (b"#?R", b"\x59\xa6\x6a\x95", b"PF\n", b"Pf\n", b"II*\0", b"MM\0*")
"""How pictures begin that only OpenCV reads: Radiance, Sun raster, portable float map, many kinds of TIFF."""
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2"}
STILL_BRANDS = HEIF_BRANDS | {b"avif"}
LOOP_KINDS = ("GIF", "PNG", "WEBP", "AVIF")
BACKGROUND = "white"


def is_image(path: str | Path) -> bool:
    """Whether the file is a still picture (any kind that read_image takes), by its content."""
    return _is_picture(path) and not is_animation(path)


def is_animation(path: str | Path) -> bool:
    """Whether the file is a moving picture of a kind that also stands still: GIF, PNG, WebP, AVIF, raw MJPEG."""
    path = Path(path)
    if not _is_picture(path):
        return False
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), _opened(path) as image:
        if image.format == "JPEG":
            return _jpegs_follow(path, image.size)
        return image.format in LOOP_KINDS and getattr(image, "n_frames", 1) > 1
    return False


def read_image(path: str | Path, background: str = BACKGROUND) -> np.ndarray:
    """A still picture as uint8 RGB (H, W, 3): upright by its EXIF mark, in sRGB, laid on a background where it is
    transparent, 16 bits made 8."""
    return flattened(read_picture(path), background)


def read_picture(path: str | Path) -> np.ndarray:
    """The same with its transparency: (H, W, 4) where it has any, else (H, W, 3)."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of an image in it.")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); give the path of an image.") from error
    with suppress(OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        return _by_pillow(data, path)
    pixels = _by_opencv(data)
    if pixels is None and _brand(data) in HEIF_BRANDS:
        raise UserError(_about_heif(path))
    if pixels is None:
        raise UserError(f"{path} is not an image that can be read; give a PNG, JPEG, WebP or TIFF.")
    return pixels


def flattened(pixels: np.ndarray, background: str = BACKGROUND) -> np.ndarray:
    """(H, W, 3 or 4) uint8 as (H, W, 3): what is behind a transparent pixel is the background, never its hidden
    color."""
    if pixels.shape[2] == 3:
        return pixels
    out, behind = np.empty((*pixels.shape[:2], 3), np.uint8), np.array(rgb_of(background), np.uint16)
    for top in range(0, len(pixels), 256):  # a large picture as 16-bit numbers would take twice its memory again
        rows = pixels[top : top + 256].astype(np.uint16)
        alpha = rows[..., 3:]
        out[top : top + 256] = (rows[..., :3] * alpha + behind * (255 - alpha) + 127) // 255
    return out


def within(pixels: np.ndarray, side: int) -> np.ndarray:
    """Made smaller, in proportion, so that no side is longer than this; 0: as it is. Sides become even, which players
    like better."""
    import cv2

    height, width = pixels.shape[:2]
    if not side or max(height, width) <= side:
        return pixels
    scale = side / max(height, width)
    width, height = (max(2, round(length * scale / 2) * 2) for length in (width, height))
    size = (min(width, side), min(height, side))
    if pixels.shape[2] == 3:
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    # hidden colors must not leak into what is seen at an edge: they count by how much they are seen
    seen = cv2.resize((pixels[..., :3] * (pixels[..., 3:] / np.float32(255))), size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(pixels[..., 3], size, interpolation=cv2.INTER_AREA)
    colors = np.rint(seen * 255 / np.maximum(alpha, 1)[..., None]).clip(0, 255)
    return np.dstack([colors.astype(np.uint8), alpha])


def rgb_of(color: str) -> tuple[int, int, int]:
    """A color by its name or as #rrggbb."""
    try:
        return ImageColor.getrgb(color)[:3]
    except ValueError as error:
        raise UserError(
            f"background is {color!r}; it must be the name of a color, such as white, or a number like #00ff00."
        ) from error


def _is_picture(path: str | Path) -> bool:
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except (OSError, ValueError):
        return False
    if _brand(head) in HEIF_BRANDS or head.startswith(OTHER_KINDS):
        return True
    try:
        with _opened(path):
            return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


@contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    with suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        # a plug-in by itself, which changes nothing for other kinds; the same call by others does no harm
        pillow_heif.register_heif_opener()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(source, formats=[kind for kind in KINDS if kind in _known()])
    with image:
        yield image


def _known() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _by_pillow(data: bytes, path: Path) -> np.ndarray:
    with _opened(BytesIO(data)) as image:
        if image.mode.startswith(("I", "F")):
            deep = _by_opencv(data)  # Pillow cuts high values off
            if deep is not None and "icc_profile" not in image.info:
                return deep
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            facts, upright = upright.info, Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
            upright.info = facts
        return np.asarray(to_srgb(upright, path.name)).copy()


def _by_opencv(data: bytes) -> np.ndarray | None:
    """Upright RGB or RGBA, by OpenCV."""
    import cv2

    numbers = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(numbers, cv2.IMREAD_COLOR)
        whole = cv2.imdecode(numbers, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # empty, or larger than OpenCV allows
        return None
    if image is None:
        return None
    if whole is not None and whole.ndim == 3 and whole.shape[2] == 4 and whole.shape[:2] == image.shape[:2]:
        alpha = whole[..., 3] if whole.dtype == np.uint8 else (np.asarray(whole[..., 3]) // 256).astype(np.uint8)
        image = np.dstack([image, alpha])
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])


def _brand(data: bytes) -> bytes:
    """What an ISO media file says it is; nothing for other files."""
    return data[8:12] if data[4:8] == b"ftyp" else b""


def _about_heif(path: Path) -> str:
    try:
        import pillow_heif  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return str(missing_package(f"{path} is a HEIC picture, which", "pillow_heif", instead="save it as JPEG"))
    return f"{path} is a HEIC picture that cannot be read; save it as JPEG."


def _jpegs_follow(path: Path, size: tuple[int, int]) -> bool:
    """Whether a JPEG is followed by others as large: a film without a container. What cameras append (previews, depth,
    a short film) is smaller or no picture."""
    with suppress(FFmpegError, ValueError), av.open(file_url(path), format="mjpeg") as container:
        sizes: list[tuple[int, int]] = []
        for packet in container.demux(video=0):
            sizes += [(frame.width, frame.height) for frame in packet.decode()]
            if len(sizes) >= 2:
                return sizes[:2] == [size, size]
    return False

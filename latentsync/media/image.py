"""Still images."""

from pathlib import Path

import numpy as np

from ..errors import UserError
from .opening import reason
from .probe import probe


def is_image(path: str | Path) -> bool:
    """Whether the file is a still picture (any kind that read_image takes), by its content."""
    import cv2

    path = Path(path)
    if not path.is_file() or not cv2.haveImageReader(str(path)):
        return False
    return path.open("rb").read(4) != b"GIF8" or probe(path).frames == 1


def read_image(path: str | Path) -> np.ndarray:
    """A still picture as uint8 RGB (H, W, 3), upright by its EXIF mark; transparency dropped, 16 bits made 8."""
    import cv2

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of an image in it.")
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); give the path of an image.") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # empty, or larger than OpenCV allows
        image = None
    if image is None:
        raise UserError(f"{path} is no image that can be read; give a PNG, JPEG, WebP or TIFF.")
    return np.ascontiguousarray(image[..., ::-1])

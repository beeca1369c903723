"""One image as one file: the file system behind `passthrough export`, and the sources that an image may lie in.

source.py is what a source can be asked; file.py, nbd.py and qemu.py are sources, window.py, overlay.py and aligned.py
are put before one; opening.py finds the right one for an image, and reach.py what it needs
of the machine afterwards; image.py is the file system.
"""

from .image import Image, ImageConfig
from .opening import ImageRequest, open_image
from .reach import Reach, reach
from .source import BlockSource, CacheMode, ImageError

__all__ = [
    "BlockSource",
    "CacheMode",
    "Image",
    "ImageConfig",
    "ImageError",
    "ImageRequest",
    "Reach",
    "open_image",
    "reach",
]

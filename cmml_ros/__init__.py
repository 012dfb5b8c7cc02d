"""Find airholes in concrete with a camera and a range sensor, and state their size with an uncertainty."""

import os
from pkgutil import extend_path

# The generated messages live in the installed `cmml_ros`, the sources may lie ahead of it on sys.path:
# one name, two folders.
__path__ = extend_path(__path__, __name__)

# Before OpenCV is loaded: a damaged header may announce a gigapixel, which takes seconds and gigabytes to refuse.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**27))

"""Find airholes in concrete with a camera and a range sensor, and state their size with an uncertainty."""

from pkgutil import extend_path

# The generated messages live in the installed `cmml_ros`, the sources may lie ahead of it on sys.path:
# one name, two folders.
__path__ = extend_path(__path__, __name__)

"""What can go wrong, by who has to act.

Every message says what is wrong, where (topic, file, field) and what to do about it.
"""


class CmmlError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(CmmlError):
    """A setting is unknown, of the wrong type or out of its range."""


class ShapeError(CmmlError):
    """An array at a public door does not have the documented shape or type."""


class MessageError(CmmlError):
    """One message cannot be used; the next one may be fine."""


class TransformError(CmmlError):
    """A transform between two frames is not known at the stamp that was asked for."""


class BagError(CmmlError):
    """A recording is missing, damaged, or lacks what the pipeline needs."""


class ModelError(CmmlError):
    """Weights are missing, foreign, or do not fit the network."""


class SceneError(CmmlError):
    """A simulated scene cannot be built as described."""


class SurfaceError(CmmlError):
    """The points around an airhole do not define the surface it lies in."""


class PoseError(CmmlError):
    """Picture and points do not determine how their sensors lie to each other."""

"""Every setting of the pipeline: default, unit, range and one line of documentation.

These dataclasses are the only source: ROS parameters (`sync.tolerance_s`), YAML files, `cmml --config` and the
table in the README are all derived from them. An unknown key is refused by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cmml_ros.errors import ConfigError

Scalar = bool | int | float | str
ConfigT = TypeVar('ConfigT')

_EXPONENT = re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+')
# Every node has these; they stand in parameter files and are none of our settings.
_ROS_PARAMETERS = ('use_sim_time', 'start_type_description_service')


@dataclass(frozen=True)
class Setting:
    """What a person needs to know about one value of a config dataclass."""

    doc: str
    unit: str = ''
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


def setting(
    default: Scalar,
    doc: str,
    *,
    unit: str = '',
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries its documentation and its range."""
    return field(default=default, metadata={'setting': Setting(doc, unit, low, high, choices)})


@dataclass(frozen=True)
class SyncConfig:
    """Pairing of images with clouds."""

    tolerance_s: float = setting(0.05, 'largest stamp difference of a pair', unit='s', low=0.0, high=1.0)
    camera_offset_s: float = setting(0.0, 'added to every image stamp before pairing', unit='s', low=-1.0, high=1.0)
    lidar_offset_s: float = setting(0.0, 'added to every cloud stamp before pairing', unit='s', low=-1.0, high=1.0)
    queue_size: int = setting(10, 'images and clouds kept while they wait for a partner', low=1, high=1000)
    transform_wait_s: float = setting(
        0.5, 'how long a pair waits for its transform, in sensor time', unit='s', low=0.0, high=10.0
    )
    history_s: float = setting(10.0, 'how long moving transforms are kept', unit='s', low=0.1, high=600.0)
    map_frame: str = setting('map', 'frame in which the same airhole seen again is recognised')


@dataclass(frozen=True)
class DetectionConfig:
    """From image to airhole masks."""

    model: str = setting('small', 'name of shipped weights, or path of a .safetensors file')
    device: str = setting('auto', 'where the network runs', choices=('auto', 'cpu', 'cuda'))
    precision: str = setting(
        'int8', 'of the convolutions on a CPU; instead of int8 a GPU takes float16', choices=('int8', 'float32')
    )
    threads: int = setting(
        0,
        'CPU threads of the network, shared by the frames that are inspected at once; 0: one per core',
        low=0,
        high=256,
    )
    mask_threshold: float = setting(0.5, 'probability from which a pixel belongs to an airhole', low=0.05, high=0.95)
    confidence_threshold: float = setting(0.7, 'mean probability from which a blob is reported', low=0.0, high=1.0)
    confirmed_threshold: float = setting(
        0.5, 'the same for a blob whose volume is measured: a cavity is there', low=0.0, high=1.0
    )
    min_diameter_px: float = setting(3.0, 'smaller blobs are not reported', unit='px', low=1.0, high=100.0)
    use_range: bool = setting(True, 'give the network the projected range where there is any')


@dataclass(frozen=True)
class RegistrationConfig:
    """How camera and range sensor lie to each other."""

    mode: str = setting(
        'tf',
        'the extrinsic from /tf as it is, corrected from the data, or found without it',
        choices=('tf', 'refine', 'match'),
    )
    check_period_s: float = setting(
        20.0,
        'the extrinsic is checked against the data this often in mode tf; 0: never',
        unit='s',
        low=0.0,
        high=3600.0,
    )
    rotation_std_deg: float = setting(
        2.0, 'deviation of the rotation of the given extrinsic', unit='deg', low=0.01, high=30.0
    )
    translation_std_m: float = setting(
        0.02, 'deviation of the translation of the given extrinsic', unit='m', low=0.0001, high=1.0
    )
    systematic_px: float = setting(
        0.3, 'smooth error of the matches in a picture 640 px wide, for a close sensor', unit='px', low=0.0, high=10.0
    )
    drift_rate_deg_h: float = setting(
        0.2, 'deviation by which the true rotation wanders in an hour', unit='deg', low=0.0, high=100.0
    )
    drift_rate_m_h: float = setting(
        0.002, 'deviation by which the true translation wanders in an hour', unit='m', low=0.0, high=10.0
    )
    frames_to_believe: int = setting(3, 'frames that must agree before a drift is believed', low=1, high=1000)


@dataclass(frozen=True)
class SurfaceConfig:
    """The undamaged surface around one airhole."""

    gap_ratio: float = setting(0.15, 'ring starts this far outside the rim, in diameters', low=0.0, high=2.0)
    width_ratio: float = setting(0.75, 'width of the ring, in diameters', low=0.1, high=5.0)
    min_gap_px: float = setting(2.0, 'ring starts at least this far outside the rim', unit='px', low=0.0, high=50.0)
    min_width_px: float = setting(12.0, 'the ring is at least this wide', unit='px', low=1.0, high=500.0)
    min_points: int = setting(12, 'fewer points in the ring are no surface', low=6, high=10000)
    max_points: int = setting(4000, 'a denser ring is thinned to this many points', low=100, high=1000000)
    curvature_significance: float = setting(
        0.001, 'F-test level below which a quadric replaces the plane', low=0.0, high=0.5
    )


@dataclass(frozen=True)
class MeasurementConfig:
    """From mask and points to area, depth and volume."""

    range_noise_m: float = setting(
        0.0, 'white noise of one range reading; 0 estimates it from the surface', unit='m', low=0.0, high=1.0
    )
    range_bias_m: float = setting(
        0.0, 'range error common to one airhole, not removed by averaging', unit='m', low=0.0, high=1.0
    )
    distance_std_m: float = setting(
        0.0, 'range error that surface and airhole share; changes lengths, not depths', unit='m', low=0.0, high=1.0
    )
    focal_std_ratio: float = setting(
        0.0, 'relative deviation of the focal length; 0 takes it as exact', low=0.0, high=0.1
    )
    extrinsic_rotation_std_rad: float = setting(
        0.0, 'deviation of the extrinsic about each axis; 0 takes it as exact', unit='rad', low=0.0, high=0.1
    )
    extrinsic_translation_std_m: float = setting(
        0.0, 'deviation of the extrinsic along each axis; 0 takes it as exact', unit='m', low=0.0, high=0.1
    )
    boundary_std_px: float = setting(
        0.0,
        'systematic deviation of the rim in the image; 0 takes it from the mask',
        unit='px',
        low=0.0,
        high=10.0,
    )
    footprint_ratio: float = setting(
        1.0,
        'width of the patch of one reading, in distances of the readings: about 1 for stereo, 0 for a laser spot',
        low=0.0,
        high=3.0,
    )
    detection_factor: float = setting(
        3.3, 'deviations above an undamaged patch from which a depth is measured', low=1.0, high=10.0
    )
    min_points: int = setting(8, 'fewer points inside the rim leave depth to the shape prior', low=1, high=10000)
    min_depth_ratio: float = setting(
        0.1, 'what is surely shallower than this share of its diameter is a mark, no airhole', low=0.0, high=1.0
    )
    prior_depth_ratio_mean: float = setting(0.35, 'prior mean of depth over equivalent diameter', low=0.01, high=2.0)
    prior_depth_ratio_std: float = setting(
        0.20, 'prior deviation of depth over equivalent diameter', low=0.01, high=2.0
    )
    prior_shape_ratio_std: float = setting(
        0.20, 'prior deviation of an airhole from the cap of an ellipsoid, over its depth', low=0.001, high=1.0
    )


@dataclass(frozen=True)
class MapConfig:
    """The same airhole seen again."""

    gate_m: float = setting(
        0.001, 'deviation between two views of one airhole, besides drift and their own', unit='m', low=0.0, high=1.0
    )
    gate_factor: float = setting(3.0, 'deviations within which two views are one airhole', low=1.0, high=10.0)
    step_std_m: float = setting(
        0.008, "deviation of the robot's way from frame to frame", unit='m', low=0.00001, high=1.0
    )
    step_std_deg: float = setting(
        0.4, "deviation of the robot's turn from frame to frame", unit='deg', low=0.0001, high=10.0
    )
    drift_m: float = setting(0.05, "how far the robot's pose drifts in the long run", unit='m', low=0.0001, high=100.0)


@dataclass(frozen=True)
class GradingConfig:
    """From the map to verdicts."""

    standards: str = setting('dbv_sichtbeton, aci_301', 'shipped standards, or .yaml files like config/grading/*.yaml')
    step_m: float = setting(0.05, 'test areas slide over the surface by this', unit='m', low=0.01, high=1.0)
    min_confidence: float = setting(0.5, 'less confident airholes are listed but not graded', low=0.0, high=1.0)


@dataclass(frozen=True)
class ReportConfig:
    """What the cover of a report says beyond what the recording tells."""

    site: str = setting('', 'what is inspected: the structure and its part')
    robot: str = setting('', 'name of the robot')
    camera: str = setting('', 'make and serial number of the camera')
    range_sensor: str = setting('', 'make and serial number of the range sensor')


@dataclass(frozen=True)
class InspectorConfig:
    """The whole pipeline, one dataclass per stage."""

    sync: SyncConfig = field(default_factory=SyncConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    surface: SurfaceConfig = field(default_factory=SurfaceConfig)
    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)
    map: MapConfig = field(default_factory=MapConfig)
    grading: GradingConfig = field(default_factory=GradingConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class SettingEntry:
    """One scalar setting of a (nested) config dataclass, by its dotted name."""

    name: str
    type: type[Scalar]
    default: Scalar
    setting: Setting


def list_settings(config_type: type) -> Iterator[SettingEntry]:
    """Every scalar setting below `config_type`, depth first, by dotted name."""
    hints = typing.get_type_hints(config_type)
    for item in dataclasses.fields(config_type):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            for entry in list_settings(hint):
                yield dataclasses.replace(entry, name=f'{item.name}.{entry.name}')
        else:
            assert item.default is not dataclasses.MISSING
            yield SettingEntry(item.name, hint, item.default, item.metadata['setting'])


def make_config(config_type: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """`config_type` with `values`, given as dotted names (`sync.tolerance_s`) or as nested mappings.

    Raises ConfigError for an unknown name, a wrong type or a value out of range.
    """
    known = {entry.name: entry for entry in list_settings(config_type)}
    flat = dict(_flatten_mapping(values))
    for name, value in flat.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ''
            raise ConfigError(f'unknown setting "{name}"{hint}')
        flat[name] = _check_value(known[name], value)
    return _build(config_type, flat, '')


def load_config(config_type: type[ConfigT], path: Path) -> ConfigT:
    """`config_type` from a YAML file: plain, or in the form of a ROS parameter file (`node: ros__parameters:`).

    Raises ConfigError when the file is missing, is no mapping, or holds a bad setting.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read ({error.strerror}); check the path') from None
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path}: not in UTF-8 ({error}); save it so') from None
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: not valid YAML: {error}') from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f'{path}: expected "name: value" lines, found {type(document).__name__}')
    nodes = [value['ros__parameters'] for value in document.values() if _is_parameter_block(value)]
    if nodes:
        document = {
            name: value
            for name, value in _flatten_mapping(nodes[0])
            if name not in _ROS_PARAMETERS and not name.startswith('qos_overrides.')
        }
    try:
        return make_config(config_type, document)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from None


def flatten_config(config: Any) -> dict[str, Scalar]:
    """Every value of a config, by dotted name: the inverse of `make_config`."""
    return dict(_flatten_mapping(dataclasses.asdict(config)))


def _is_parameter_block(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('ros__parameters'), dict)


def _flatten_mapping(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_mapping(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _check_value(entry: SettingEntry, value: Any) -> Scalar:
    expected = entry.type
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        exponent = isinstance(value, str) and _EXPONENT.fullmatch(value)
        hint = ', which YAML takes for text; write it like 1.0e-3' if exponent else ''
        raise ConfigError(f'"{entry.name}" must be {expected.__name__}, got {value!r}{hint}')
    about = entry.setting
    if about.choices and value not in about.choices:
        raise ConfigError(f'"{entry.name}" must be one of {", ".join(about.choices)}, got {value!r}')
    if isinstance(value, int | float) and not about.low <= value <= about.high:
        raise ConfigError(f'"{entry.name}" must be in [{about.low:g}, {about.high:g}] {about.unit}, got {value!r}')
    return value


def _build(config_type: type[ConfigT], flat: Mapping[str, Scalar], prefix: str) -> ConfigT:
    hints = typing.get_type_hints(config_type)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, config_type)):
        name = f'{prefix}{item.name}'
        if dataclasses.is_dataclass(hints[item.name]):
            arguments[item.name] = _build(hints[item.name], flat, f'{name}.')
        elif name in flat:
            arguments[item.name] = flat[name]
    return config_type(**arguments)

"""Grading standards: classes with their limits and where these come from, read from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmml_ros.errors import ConfigError

_LIMITS = ('area_mm2', 'count', 'width_mm', 'depth_mm')
_KEYS = {'title', 'edition', 'source', 'note', 'test_area_mm', 'diameter_mm', 'classes'}


@dataclass(frozen=True)
class GradeClass:
    """One class of a standard; limits by name (area_mm2 and count per test area, width_mm and depth_mm per airhole)."""

    name: str
    limits: dict[str, float]


@dataclass(frozen=True)
class Standard:
    """Classes from the least to the strictest, and where their limits come from.

    diameter_m: equivalent diameters that count.
    """

    title: str
    edition: str
    source: str
    note: str
    test_area_m: float
    diameter_m: tuple[float, float]
    classes: tuple[GradeClass, ...]


def load_standards(names: str) -> list[Standard]:
    """The standards in `names`, shipped ones by name or files by path, separated by commas.

    Raises ConfigError for an unknown name, and for a file that is no standard.
    """
    standards = []
    for name in filter(None, map(str.strip, names.split(','))):
        path = Path(name) if name.endswith(('.yaml', '.yml')) else _shipped_folder() / f'{name}.yaml'
        try:
            document = yaml.safe_load(path.read_text(encoding='utf-8'))
        except OSError:
            known = ', '.join(sorted(file.stem for file in _shipped_folder().glob('*.yaml')))
            raise ConfigError(f'no grading standard "{name}"; shipped are {known}, or name a .yaml file') from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f'{path}: not valid YAML: {error}') from None
        try:
            standards.append(_read_standard(path, document))
        except (AttributeError, TypeError, ValueError) as error:
            # Text or a list where a number is to stand.
            raise ConfigError(f'{path}: {error}; write it like those in config/grading') from None
    return standards


def _read_standard(path: Path, document: Any) -> Standard:
    if not isinstance(document, dict) or not {'title', 'edition', 'source', 'classes'} <= set(document):
        raise ConfigError(f'{path}: a grading standard needs title, edition, source and classes')
    unknown = sorted(set(document) - _KEYS)
    if unknown:
        raise ConfigError(f'{path}: unknown key "{unknown[0]}"; known are {", ".join(sorted(_KEYS))}')
    classes = []
    for one in document['classes']:
        limits = {name: value for name, value in one.items() if name != 'name' and value is not None}
        bad = sorted(name for name, value in limits.items() if name not in _LIMITS or not _is_size(value))
        if 'name' not in one or bad:
            raise ConfigError(
                f'{path}: a class has a name and limits {", ".join(_LIMITS)} as numbers from 0 on, got {one}'
            )
        classes.append(GradeClass(str(one['name']), {name: float(value) for name, value in limits.items()}))
    low, high = map(float, document.get('diameter_mm', (0.0, math.inf)))
    if not 0.0 <= low < high:  # else no airhole counts, and every limit is met
        raise ConfigError(f'{path}: diameter_mm goes from a smaller to a larger number, got {low:g} and {high:g}')
    side_mm = float(document.get('test_area_mm', 500.0))
    if not 10.0 <= side_mm < math.inf:
        raise ConfigError(f'{path}: test_area_mm is the side of a square of 10 mm and more, got {side_mm:g}')
    if not classes:
        raise ConfigError(f'{path}: "classes" has none')
    return Standard(
        title=str(document['title']),
        edition=str(document['edition']),
        source=str(document['source']),
        note=str(document.get('note', '')),
        test_area_m=side_mm * 1e-3,
        diameter_m=(low * 1e-3, high * 1e-3),
        classes=tuple(classes),
    )


def _is_size(value: Any) -> bool:
    """Whether it is a number from 0 on; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _shipped_folder() -> Path:
    """config/grading: beside the sources, in `share` of the install prefix, or in the package."""
    inside = Path(__file__).parent / 'standards'
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / 'config' / 'grading', parent / 'share' / 'cmml_ros' / 'config' / 'grading'):
            if folder.is_dir():
                return folder
    return inside

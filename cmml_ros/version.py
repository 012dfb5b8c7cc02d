"""The one version number, which package.xml holds."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path


def read_version() -> str:
    """The version of this package, for example '0.1.0'."""
    for parent in Path(__file__).resolve().parents:
        for path in (parent / 'package.xml', parent / 'share' / 'cmml_ros' / 'package.xml'):
            found = re.search(r'<version>(.+?)</version>', path.read_text('utf-8')) if path.is_file() else None
            if found:
                return found[1]
    return importlib.metadata.version('cmml_ros')  # installed by pip, which keeps no package.xml

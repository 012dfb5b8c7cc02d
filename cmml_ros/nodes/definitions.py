"""Message definitions of the packages that are installed, for recordings of types a distribution does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rosbags.typesys import TypesysError, get_types_from_msg


def find_definitions(type_name: str) -> dict[str, Any]:
    """The type and all it consists of, as BagWriter.register takes them; empty where its .msg file is not installed."""
    found: dict[str, Any] = {}
    wanted = [type_name]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        package, _, message = name.split('/')
        try:
            path = Path(get_package_share_directory(package)) / 'msg' / f'{message}.msg'
            types = get_types_from_msg(path.read_text(encoding='utf-8'), name)
        except (PackageNotFoundError, OSError, TypesysError):
            continue
        found.update(types)
        wanted += [inner for _, fields in types.values() for _, field in fields for inner in _names_in(field)]
    return found


def _names_in(field: Any) -> list[str]:
    """The message types of one field as rosbags parses it: (node type, value), the value again one for arrays."""
    if isinstance(field, str):
        return [field] if field.count('/') == 2 else []
    return [name for part in field for name in _names_in(part)] if isinstance(field, tuple) else []

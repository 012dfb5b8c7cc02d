from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmml_ros.config import (
    InspectorConfig,
    SettingEntry,
    SyncConfig,
    flatten_config,
    list_settings,
    load_config,
    make_config,
)
from cmml_ros.errors import ConfigError

ENTRIES = list(list_settings(InspectorConfig))


def values_of(entry: SettingEntry) -> st.SearchStrategy[Any]:
    about = entry.setting
    if about.choices:
        return st.sampled_from(about.choices)
    if entry.type is bool:
        return st.booleans()
    if entry.type is int:
        return st.integers(int(about.low), int(about.high))
    if entry.type is float:
        return st.floats(about.low, about.high)
    return st.text(max_size=20)


@given(st.fixed_dictionaries({}, optional={entry.name: values_of(entry) for entry in ENTRIES}))
def test_any_allowed_values_survive_making_and_flattening(values: dict[str, Any]):
    flat = flatten_config(make_config(InspectorConfig, values))
    assert {name: flat[name] for name in values} == values
    untouched = [entry for entry in ENTRIES if entry.name not in values]
    assert all(flat[entry.name] == entry.default for entry in untouched)


def test_names_are_dotted_and_every_setting_is_documented():
    names = [entry.name for entry in ENTRIES]
    assert 'sync.tolerance_s' in names
    assert len(set(names)) == len(names)
    for entry in ENTRIES:
        assert entry.setting.doc
        assert entry.type in (bool, int, float, str)


def test_every_default_lies_in_its_range():
    assert flatten_config(make_config(InspectorConfig, {e.name: e.default for e in ENTRIES})) == flatten_config(
        InspectorConfig()
    )


def test_nested_and_dotted_names_are_the_same():
    nested = make_config(InspectorConfig, {'sync': {'tolerance_s': 0.1}})
    assert nested == make_config(InspectorConfig, {'sync.tolerance_s': 0.1})
    assert nested.sync == dataclasses.replace(SyncConfig(), tolerance_s=0.1)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'sync.tolerence_s': 0.1}, 'unknown setting "sync.tolerence_s"; did you mean "sync.tolerance_s"'),
        ({'sync': 3}, 'unknown setting "sync"'),
        ({'sync.tolerance_s': -0.1}, r'"sync.tolerance_s" must be in \[0, 1\] s, got -0.1'),
        ({'sync.tolerance_s': float('nan')}, r'must be in \[0, 1\]'),
        ({'sync.tolerance_s': 'long'}, '"sync.tolerance_s" must be float, got \'long\''),
        ({'sync.tolerance_s': '1e-2'}, "got '1e-2', which YAML takes for text; write it like 1.0e-3"),
        ({'sync.queue_size': 2.5}, '"sync.queue_size" must be int, got 2.5'),
        ({'sync.queue_size': True}, '"sync.queue_size" must be int, got True'),
        ({'detection.device': 'tpu'}, '"detection.device" must be one of auto, cpu, cuda'),
    ],
)
def test_a_bad_setting_is_refused_by_name(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_config(InspectorConfig, values)


def test_an_integer_is_a_fine_float():
    assert make_config(InspectorConfig, {'sync.tolerance_s': 1}).sync.tolerance_s == 1.0


def test_plain_files_and_ros_parameter_files(tmp_path: Path):
    plain = tmp_path / 'plain.yaml'
    plain.write_text('sync:\n  tolerance_s: 0.1\ndetection.device: cpu\n')
    ros = tmp_path / 'ros.yaml'
    ros.write_text(
        'inspection_node:\n  ros__parameters:\n    use_sim_time: true\n    sync.tolerance_s: 0.1\n'
        '    detection:\n      device: cpu\n'
    )
    for path in (plain, ros):
        config = load_config(InspectorConfig, path)
        assert (config.sync.tolerance_s, config.detection.device) == (0.1, 'cpu')
    empty = tmp_path / 'empty.yaml'
    empty.write_text('# nothing\n')
    assert load_config(InspectorConfig, empty) == InspectorConfig()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('sync: [', 'not valid YAML'),
        ('- 1\n- 2\n', 'found list'),
        ('sync.tolerence_s: 1', 'unknown setting "sync.tolerence_s"'),
        ('n:\n  ros__parameters:\n    sync.tolerence_s: 1', 'unknown setting "sync.tolerence_s"'),
        ('n:\n  ros__parameters:\n    snyc.tolerance_s: 1.0', 'unknown setting "snyc.tolerance_s"'),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / 'settings.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'settings.yaml.*{message}'):
        load_config(InspectorConfig, path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path):
    path = tmp_path / 'settings.yaml'
    path.write_bytes('report.site: Brücke'.encode('latin-1'))
    with pytest.raises(ConfigError, match=r'settings\.yaml: not in UTF-8'):
        load_config(InspectorConfig, path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r'absent\.yaml: cannot be read'):
        load_config(InspectorConfig, tmp_path / 'absent.yaml')


def test_the_readme_lists_every_setting_with_its_default():
    readme = (Path(__file__).parents[1] / 'README.md').read_text(encoding='utf-8')
    for entry in list_settings(InspectorConfig):
        default = str(entry.default).lower() if entry.type is bool else entry.default
        assert f'| `{entry.name}` | `{default}` |' in readme, entry.name
        assert f'| {entry.setting.doc} |' in readme, entry.name


@pytest.mark.parametrize(
    'path', sorted((Path(__file__).parents[1] / 'config' / 'sensors').glob('*.yaml')), ids=lambda path: path.stem
)
def test_a_sensor_preset_loads_and_names_its_source(path: Path) -> None:
    load_config(InspectorConfig, path)
    assert 'Source:' in path.read_text() or 'Source of the figures:' in path.read_text()

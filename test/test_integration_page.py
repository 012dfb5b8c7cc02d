"""docs/integration.md quotes what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'integration.md').read_text()
# Where `…` stands, the code fills something in.
QUOTES = [line.split('`')[1] for line in PAGE.partition('## Troubleshooting')[2].splitlines() if line.startswith('| `')]


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r'%[a-z]', '…', node.value)


SAID = [text for path in (ROOT / 'cmml_ros').rglob('*.py') for text in texts(ast.parse(path.read_text()))]


def test_the_table_is_long_enough_to_help() -> None:
    assert len(QUOTES) > 20


@pytest.mark.parametrize('quote', QUOTES)
def test_the_code_says_what_the_table_quotes(quote: str) -> None:
    # What is filled in may stand for several places in the code, so only its fixed parts have to follow each other.
    pattern = '.*'.join(re.escape(part) for part in quote.split('…') if part.strip(' :;'))
    assert any(re.search(pattern, text, re.DOTALL) for text in SAID), quote


def test_parameters_and_files_that_the_page_names_exist() -> None:
    config = (ROOT / 'config' / 'inspect.yaml').read_text()
    for stage, name in re.findall(r'`(sync|detection|registration)\.([a-z_]+)', PAGE):
        assert f'  {stage}:' in config
        assert f'      {name}:' in config
    recorder = (ROOT / 'cmml_ros' / 'nodes' / 'recorder_node.py').read_text()
    for name in ('max_file_mb', 'max_file_s', 'reserve_mb', 'event_window_s'):
        assert f'`{name}`' in PAGE
        assert f'    {name}: ' in recorder
    for path in re.findall(r'(?:config|benchmarks)/[a-z_]+\.[a-z]+', PAGE):
        assert (ROOT / path).is_file(), path

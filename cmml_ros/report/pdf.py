"""The report on paper."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
_TIMEOUT_S = 180.0


def find_browser() -> str | None:
    """Path of a Chromium on this machine, None without one."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def print_pdf(report: Path, pdf: Path) -> str:
    """Prints `report`, an HTML file, as A4 pages; returns why it could not be, empty when `pdf` is there."""
    pdf.unlink(missing_ok=True)  # one that is there afterwards shows `report`
    browser = find_browser()
    if browser is None:
        return f'no {pdf.name}: there is no Chromium on this machine; print {report.name} from any browser'
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, '--headless', '--disable-gpu', '--no-pdf-header-footer', f'--user-data-dir={profile}',
            f'--print-to-pdf={pdf.resolve()}', f'{report.resolve().as_uri()}#print',
        ]  # fmt: skip
        if os.geteuid() == 0:
            command.insert(1, '--no-sandbox')  # Chromium refuses to run as root with it
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603 - no shell
        except subprocess.TimeoutExpired:
            return f'no {pdf.name}: {browser} did not end within {_TIMEOUT_S:.0f} s'
    if done.returncode != 0 or not pdf.exists():
        last = (done.stderr.decode(errors='replace').strip().splitlines() or ['it said nothing'])[-1]
        return f'no {pdf.name}: {browser} failed ({last})'
    return ''

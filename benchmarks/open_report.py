"""How long the report of a large map takes to open in Chromium.

    python benchmarks/open_report.py [--airholes 10000] [--repeats 5]

DOMContentLoaded, and the first picture with the table and the cards on it, from the start of the navigation: wall time,
which means something only on an idle machine, and processor time of the page, which does in any case.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from cmml_ros.report.pdf import find_browser

sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
from test_report_browser import make_snapshot, save

# Resolves in the frame after the one in which the page of cards is there.
_PAINTED = """() => new Promise((done) => {
  const look = () => document.querySelectorAll('#cards .card').length
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now()))) : requestAnimationFrame(look);
  look();
})"""


def open_once(browser: Browser, report: Path) -> tuple[float, float, float]:
    """Seconds until DOMContentLoaded, until the page is painted, and of processor time."""
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    session = page.context.new_cdp_session(page)
    session.send('Performance.enable')
    page.goto(report.as_uri(), wait_until='commit')
    painted_ms = page.evaluate(_PAINTED)
    loaded_ms = page.evaluate('performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd')
    metrics = {metric['name']: metric['value'] for metric in session.send('Performance.getMetrics')['metrics']}
    page.close()
    return loaded_ms / 1e3, painted_ms / 1e3, metrics['ProcessTime']


def main() -> int:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--airholes', type=int, default=10_000)
    parser.add_argument('--repeats', type=int, default=5)
    options = parser.parse_args()
    path = find_browser()
    if path is None:
        print('open_report.py: no Chromium; apt-get install chromium', file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = save(Path(folder), make_snapshot(options.airholes))
        arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        times = [open_once(chromium, report) for _ in range(options.repeats)]
        chromium.close()
        megabytes = report.stat().st_size / 1e6
    loaded_s, painted_s, processor_s = (statistics.median(column) for column in zip(*times, strict=True))
    print(f'{options.airholes} airholes, {megabytes:.0f} MB; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
    print('| DOMContentLoaded | painted | processor |\n|---|---|---|')
    print(f'| {loaded_s:.2f} s | {painted_s:.2f} s | {processor_s:.2f} s |')
    return 0


if __name__ == '__main__':
    sys.exit(main())

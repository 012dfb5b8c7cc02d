"""`make pictures`: the pictures of the documentation, from a simulated wall.

    python benchmarks/pictures.py [--bag BAG] [--out out/pictures]

Writes docs/images/report.jpg (first page), cards.jpg (some cards) and overlay.jpg (one camera image with its rims, as
RViz shows ~/overlay).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

from cmml_ros.analyze import analyze
from cmml_ros.config import InspectorConfig, ReportConfig
from cmml_ros.report.pdf import find_browser
from cmml_ros.simulation.scenario import Scenario, simulate_bag

IMAGES = Path(__file__).parents[1] / 'docs' / 'images'
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 82]


def main() -> int:
    """Simulate, analyse, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bag', type=Path, help='a recording, default: one is simulated')
    parser.add_argument('--out', type=Path, default=Path('out/pictures'))
    options = parser.parse_args()
    bag = options.bag
    if bag is None:
        bag = options.out / 'wall'
        if not bag.exists():
            simulate_bag(bag, Scenario(seed=3), 10)
    result = options.out / 'result'
    cover = ReportConfig(site='Simulated wall, seed 3', robot='simulator_node', range_sensor='simulated depth camera')
    analyze(bag, result, InspectorConfig(report=cover))
    browser = find_browser()
    if browser is None:
        print('pictures.py: no Chromium; apt-get install chromium', file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=['--no-sandbox'] if os.geteuid() == 0 else []
        )
        page = chromium.new_page(viewport={'width': 1180, 'height': 1500}, color_scheme='light')
        page.goto((result / 'report.html').resolve().as_uri())
        save('report.jpg', page.screenshot())
        page.get_by_role('button', name='Diameter').click()
        page.locator('#cards').scroll_into_view_if_needed()
        page.locator('.card').nth(8).scroll_into_view_if_needed()
        save('cards.jpg', page.locator('#cards').screenshot(), height=1000)
        chromium.close()
    overlays = sorted((result / 'overlays').glob('*.jpg'))
    cv2.imwrite(str(IMAGES / 'overlay.jpg'), cv2.imread(str(overlays[len(overlays) // 2])), QUALITY)
    print(*sorted(IMAGES.glob('*.jpg')), sep='\n')
    return 0


def save(name: str, screenshot: bytes, height: int | None = None) -> None:
    """A screenshot as JPEG, its upper `height` pixels."""
    picture = cv2.imdecode(np.frombuffer(screenshot, np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(str(IMAGES / name), picture[:height], QUALITY)


if __name__ == '__main__':
    sys.exit(main())

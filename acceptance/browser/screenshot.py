"""The picture of the page in the README: a simulated fleet, at one moment of its log.

    python -m acceptance.browser.screenshot docs/images/dashboard.png
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from acceptance.browser.conftest import CHROMIUM, FLAGS
from acceptance.browser.fleets import command, simulated

SIZE = {"width": 1440, "height": 800}
AT = 0.62
COLOURS = 200


def picture(log: Path, scheme: str = "light", size: dict[str, int] | None = None, at: float = AT) -> Image.Image:
    """Return what the page looks like at this share of the log's time."""
    with command("dashboard", str(log), says=r"at (http://\S+)") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        seen: Any = {"viewport": size or SIZE, "color_scheme": scheme}
        page = browser.new_context(**seen).new_page()
        page.goto(url)
        page.locator("#lane-rows li").first.wait_for()
        page.locator("#time").evaluate(
            "(slider, at) => { slider.value = slider.max * at; slider.dispatchEvent(new Event('input')); }", at
        )
        page.wait_for_timeout(600)
        image = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
        return image.convert("RGB")


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        image = picture(simulated(Path(folder) / "events.jsonl"))
    out.parent.mkdir(exist_ok=True)
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

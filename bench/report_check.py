"""Open reports in a headless browser, as a reader would, and measure what they must hold.

Checked: no console error, no request to anywhere, under 8 MB, open in under 3 s, and (with --axe) no violation that
axe-core calls serious or critical. With --shots, pictures at 1280 and 390 pixels in light and dark are kept, to be
looked at. Needs Chromium (of the system, or $CHROMIUM) and ``pip install playwright``; skips, saying so, without them.

    python bench/report_check.py runs/demo/report.html --axe node_modules/axe-core/axe.min.js --shots shots
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

MOST_BYTES, MOST_SECONDS = 8_000_000, 3.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS, SCHEMES = {1280: 800, 390: 844}, ("light", "dark")
SEVERE = ("serious", "critical")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=[Path("runs/demo/report.html")])
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core (npm install axe-core)")
    parser.add_argument("--shots", type=Path, help="folder for pictures")
    given = parser.parse_args()
    missing = [str(page) for page in given.pages if not page.exists()]
    if missing:
        print(f"skipped: no {', '.join(missing)}; make demo writes runs/demo/report.html")
        return 0
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("skipped: pip install playwright")
        return 0
    if executable is None:
        print(f"skipped: none of {', '.join(BROWSERS)} is installed, and $CHROMIUM is not set")
        return 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        failures = [failure for page in given.pages for failure in check(browser, page, given.axe, given.shots)]
        browser.close()
    print("\n".join(failures) or "all good")
    return 1 if failures else 0


def check(browser: Any, path: Path, axe: Path | None, shots: Path | None) -> list[str]:
    """What is wrong with one page, in every width and scheme."""
    size = path.stat().st_size
    failures = [f"{path}: {size} bytes"] if size > MOST_BYTES else []
    print(f"{path}: {size / 1e6:.2f} MB")
    for width, height in WIDTHS.items():
        for scheme in SCHEMES:
            options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
            context = browser.new_context(**options)
            page = context.new_page()
            told: list[str] = []
            page.on("console", lambda message, told=told: told.append(f"console {message.type}: {message.text}"))
            page.on("pageerror", lambda error, told=told: told.append(f"error: {error}"))
            page.on("request", lambda request, told=told: told.extend(_outside(request.url)))
            began = time.perf_counter()
            page.goto(path.resolve().as_uri(), wait_until="load")
            seconds = time.perf_counter() - began
            if seconds > MOST_SECONDS:
                told.append(f"opens in {seconds:.1f} s")
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if overflow > 0:
                told.append(f"{overflow} pixels wider than the window")
            if shots is not None:
                shots.mkdir(parents=True, exist_ok=True)
                picture = shots / f"{path.resolve().parent.name}-{path.stem}-{width}-{scheme}.png"
                page.screenshot(path=str(picture), full_page=True)
            if axe is not None:
                told += violations(page, axe)
            print(f"  {width} px, {scheme}: {seconds:.2f} s, {len(told)} complaints")
            failures += [f"{path} at {width} px, {scheme}: {complaint}" for complaint in told]
            context.close()
    return failures


def violations(page: Any, axe: Path) -> list[str]:
    """axe-core's serious and critical violations, each with the first places."""
    page.evaluate(axe.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    lesser = [f"{v['id']} ({v['impact']})" for v in found if v["impact"] not in SEVERE]
    if lesser:
        print(f"  lesser: {', '.join(lesser)}")
    return [
        f"axe: {v['id']}: {v['help']}: {'; '.join(node['html'][:100] for node in v['nodes'][:3])}"
        for v in found
        if v["impact"] in SEVERE
    ]


def _outside(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"asks for {url}"]


if __name__ == "__main__":
    sys.exit(main())

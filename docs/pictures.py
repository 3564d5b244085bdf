"""Makes the pictures of README and docs from a run of the demo: `python docs/pictures.py runs/demo`.

It takes the demo's page and some pages of the station with headless Chromium, and writes them small, as WebP. A run of
`make demo` shows the simulated line only; do not use one on images that are not yours.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np

from flawline.settings.tree import load_settings

FOLDER = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1280, 800
SHOWN_WIDTH, QUALITY = 960, 72
"""Judgements: what README shows, at a size that letters can be read at."""
LIMIT_BYTES = 300_000
MARGIN_PX = 16
START_S = 60.0

STATION_PAGES = {"station-live": "/", "station-review": "/review"}


def main(run: Path) -> None:
    """Write all pictures of a run's folder."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("pictures: no chromium on this machine: install it")
    FOLDER.mkdir(exist_ok=True)
    take(chromium, (run / "index.html").absolute().as_uri() + "#found", "demo", 1200)
    port = load_settings(run / "line.toml").console.port
    console = subprocess.Popen(
        [sys.executable, "-m", "station.cli", "console", "--config", str(run / "line.toml")], stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url)
        for name, path in STATION_PAGES.items():
            take(chromium, url + path, name)
    finally:
        console.terminate()
        console.wait()
    size = sum(file.stat().st_size for file in FOLDER.glob("*.webp"))
    print(f"{size / 1000:.0f} kB in {FOLDER}")
    if size > LIMIT_BYTES:
        sys.exit(f"pictures: {size} bytes are more than {LIMIT_BYTES}: lower QUALITY")


def wait_for(url: str) -> None:
    """Wait until the station has read the run: its broker is gone, which takes it some seconds to see."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/api/live", timeout=START_S) as answer:
                if b'"ended"' in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.5)
    sys.exit(f"pictures: {url} shows no run that is over: name the folder of one")


def take(chromium: str, url: str, name: str, height: int = HEIGHT) -> None:
    """Write the picture `name` of a page."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--timeout=8000",
            f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}", f"--screenshot={shot}", url,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        pixels = without_blank_top(cv2.imread(str(shot)))
    size = SHOWN_WIDTH, round(pixels.shape[0] * SHOWN_WIDTH / pixels.shape[1])
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(FOLDER / f"{name}.webp"), small, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])


def without_blank_top(pixels: np.ndarray) -> np.ndarray:
    """Return a picture from its first row that shows more than paper: Chromium leaves room above an anchor."""
    shows = np.flatnonzero((pixels != pixels[0, 0]).any(axis=(1, 2)))
    return pixels[max(int(shows[0]) - MARGIN_PX, 0) :] if len(shows) else pixels


if __name__ == "__main__":
    main(Path(sys.argv[1]))

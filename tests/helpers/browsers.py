"""Pages in a headless Chromium."""

import re
import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """Path of a Chromium; a test without one is skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


def opened(browser, file, folder, *options):
    """Opens a page; returns its elements after it was drawn, the console, and requests."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}", "--enable-logging=stderr", "--virtual-time-budget=4000",
            *options, "--dump-dom", f"file://{file}",
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # A browser that ends may leave its log without an end.
    urls = set(re.findall(r'"url":"(https?://[^"]*)"', log.read_text()))
    return done.stdout, console, urls


def own_requests(urls):
    """Without those that Chromium makes for itself, whatever the page."""
    return {url for url in urls if not re.search(r"//[\w.-]*(google|gvt1|gstatic)[\w.-]*/", url)}

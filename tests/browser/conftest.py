"""A headless Chromium, Debian's: Playwright's own is for download."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser, for all tests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        lack = "no chromium on the path; on Debian: apt-get install --no-install-recommends chromium"
        if os.environ.get("CI"):
            pytest.fail(f"in CI there must be a browser: {lack}")
        pytest.skip(lack)
    with sync_playwright() as playwright:
        # Without its sandbox it runs as root too; it shows nothing but pages of our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()

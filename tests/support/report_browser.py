"""A report in headless Chromium, and what poppler reads of its PDF; both of `make test-deps`."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: run `make test-deps`"
    return found


def browse(page: Path, profile: Path, *options: str) -> None:
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    offline = ["--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    subprocess.run([tool("chromium"), *common, *offline, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


def plain(text: str) -> str:
    """Without blanks, line breaks and the compatibility forms that fonts map characters to."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def text_of(pdf: Path, first: int, last: int) -> str:
    done = subprocess.run([tool("pdftotext"), "-f", str(first), "-l", str(last), pdf, "-"], check=True, capture_output=True, timeout=60)
    return plain(done.stdout.decode("utf-8"))


def print_pdf(page: Path, pdf: Path, profile: Path) -> None:
    """Print a page as a PDF, without the browser's own header and footer."""
    browse(page, profile, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")

"""The fleet view of 5,000 cameras: whole, small enough for a browser and a mail, and quick."""

from __future__ import annotations

import hashlib
import time
from html.parser import HTMLParser
from pathlib import Path

from edgeedit.ota.server import release
from edgeedit.ota.server.tables import receipts
from edgeedit.ota.server.view import as_html, as_text, fleet_view
from tests.unit.ota_server.test_rollout import Site

COUNT = 5000
_VOID = {"meta", "br", "th", "td", "tr", "html", "head", "body"}  # void ones, and those whose end may be left out


class _Page(HTMLParser):
    """Rows and cells of each table, and what was opened and never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[int] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}
        if tag == "table":
            self.tables.append(0)
        if tag == "tr":
            self.tables[-1] += 1
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def test_five_thousand_cameras_on_one_page(tmp_path: Path) -> None:
    site = Site(tmp_path, COUNT)
    release.start(site.tree(), site.plan("all=100%"), site.ring, site.ledger)
    now, patch = int(site.now.timestamp()), hashlib.sha256(b"patch").hexdigest()
    told = [
        {"device": device.id, "sequence": 1, "received": now, "digest": "0" * 64, "envelope": b"x", "batch": 1, "release": "r1",
         "state": "reverted" if number % 50 == 0 else "confirmed", "patch": patch, "generation": 1,
         "reason": "probe 3 differs" if number % 50 == 0 else "", "time": now}
        for number, device in enumerate(site.devices[: COUNT - 100])
    ]  # fmt: skip
    with site.ledger.transaction() as db:
        db.execute(receipts.insert(), told)
    began = time.process_time()
    view = fleet_view(site.ledger, site.tree())
    page = as_html(view)
    took = time.process_time() - began
    assert took < 10, f"{took:.1f} s"  # about one on a machine of its own
    assert len(page.encode()) < 1_500_000, len(page.encode())
    parser = _Page()
    parser.feed(page)
    assert not parser.open and not parser.seen & {"script", "href", "src", "onload", "onclick", "iframe", "link", "img"}
    releases, failures, _, devices = parser.tables
    assert (releases, failures, devices) == (2, 1 + 98, 1 + COUNT)
    row = view["releases"][0]
    assert (row["devices"], row["confirmed"], row["reverted"], row["silent"]) == (COUNT, 4802, 98, 100)
    assert len(view["silent"]) == 100 and len(as_text(view).splitlines()) < 70

"""The agent's settings file, and its source and delivery over the update client (TUF, signed receipts).

    source = "https://updates.example/tree"     also a folder, a stick, s3://bucket/prefix
    site = "plant-7"
    root = "root.json"                          TUF root that this device was provisioned with
    key = "device.pem"                          signs receipts; without it nothing is told
    receipts = "https://fleet.example"          its receiver; also mqtt(s)://broker, or a folder to be carried home
    line = "a"; labels = ["canary"]; step_clock = false
    [link]                                      ca, certificate, key, proxy, rate, min_speed, patience, timeout
    scheduler = "hawkbit"                       before any table; "tuf" (the signed rollouts alone) without it
    [hawkbit]                                   url = "https://hawkbit.example/TENANT"; token = "token.txt" (see device/hawkbit.py)

Paths are relative to the file.  Imports nothing of the update client before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeedit.device.agent import Deliver, Order, Situation, Source
from edgeedit.device.receipts import QueuedReceipt
from edgeedit.errors import InputError, RefusedError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgeedit.ota.client.link import Link
    from edgeedit.ota.client.session import Offer
    from edgeedit.ota.client.transport import Transport

CACHE = "updates"
_WORDS = {
    "source": str,
    "site": str,
    "root": str,
    "key": str,
    "receipts": str,
    "line": str,
    "labels": list,
    "step_clock": bool,
    "link": dict,
    "scheduler": str,
    "hawkbit": dict,
}
SCHEDULERS = ("tuf", "hawkbit")
_LINK_PATHS = ("ca", "certificate", "key")


@dataclass(frozen=True)
class AgentSettings:
    """What the settings file says; paths are absolute."""

    source: str
    site: str
    root: Path
    key: Path | None = None
    receipts: str = ""
    line: str = ""
    labels: tuple[str, ...] = ()
    step_clock: bool = False
    link: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "tuf"
    ddi: str = ""
    token: Path | None = None


def load_settings(path: Path) -> AgentSettings:
    """Read the file; raises InputError naming what is wrong."""
    try:
        value = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read agent settings {path}: {error}", hint="see edgeedit/device/updates.py for the fields") from error
    for name, given in value.items():
        if name not in _WORDS or not isinstance(given, _WORDS[name]):
            raise InputError(f"agent settings {path} are wrong: expected known fields of their type, got {name}")
    if missing := [name for name in ("source", "site", "root") if not value.get(name)]:
        raise InputError(f"agent settings {path} are wrong: expected {missing[0]}, got none")
    hawkbit = value.get("hawkbit", {})
    if value.get("scheduler", "tuf") not in SCHEDULERS or not set(hawkbit) <= {"url", "token"}:
        raise InputError(f"agent settings {path} are wrong: expected a scheduler of {SCHEDULERS}, and url and token of [hawkbit]")
    link = {name: path.parent / given if name in _LINK_PATHS else given for name, given in value.get("link", {}).items()}
    return AgentSettings(
        source=_place(value["source"], path.parent),
        site=value["site"],
        root=path.parent / value["root"],
        key=path.parent / value["key"] if value.get("key") else None,
        receipts=_place(value.get("receipts", ""), path.parent),
        line=value.get("line", ""),
        labels=tuple(str(label) for label in value.get("labels", [])),
        step_clock=value.get("step_clock", False),
        link=link,
        scheduler=value.get("scheduler", "tuf"),
        ddi=str(hawkbit.get("url", "")),
        token=path.parent / str(hawkbit["token"]) if hawkbit.get("token") else None,
    )


def _place(text: str, folder: Path) -> str:
    return text if "://" in text or not text else str(folder / text)


class TufSource:
    """Releases of a TUF repository.  Raises InputError when the root cannot be read or the `ota` extra is missing."""

    def __init__(self, settings: AgentSettings, store: Path) -> None:
        self._settings, self._cache = settings, store / CACHE
        self._link = make_link(settings)
        self._offer: Offer | None = None
        self._transport: Transport | None = None  # a poll's connection, kept for the fetch that follows it
        try:
            self._root = settings.root.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read root metadata {settings.root}: {error.strerror}", hint="provision the device with it") from error

    def poll(self, situation: Situation, floors: Any, now: float, wanted: str | None = None) -> Order | None:
        """What the repository wants of this device; with `wanted`, an install of that patch only ("" for none).

        Raises what `edgeedit.ota.client.session.poll` raises."""
        from edgeedit.ota.client.rollout import Device
        from edgeedit.ota.client.session import Config, poll
        from edgeedit.ota.client.transport import open_transport

        settings = self._settings
        config = Config(
            source=settings.source,
            folder=self._cache,
            root=self._root,
            site=settings.site,
            device=Device(situation.device, situation.profile, settings.line, frozenset(settings.labels)),
            running=situation.running,
            trial=situation.trial,
            refused=situation.refused,
            step_clock=settings.step_clock,
            link=self._link,
            wanted=wanted,
        )
        self._hang_up()
        self._offer, self._transport = None, open_transport(settings.source, self._link)
        try:
            self._offer = poll(config, floors, now, self._transport)
        finally:
            if self._offer is None or self._offer.action != "install" or situation.trial:
                self._hang_up()  # no fetch follows
        if self._offer is None:
            return None
        rollout = self._offer.rollout
        back = rollout.withdraw_to.generation if rollout.withdraw_to is not None else ""
        reason = f"release {rollout.release} is withdrawn" if self._offer.action == "return" else ""
        return Order(self._offer.action, rollout.release, rollout.sequence, rollout.patch.sha256, back, reason)

    def fetch(self, order: Order, folder: Path) -> Path:
        """The file of the last offer."""
        from edgeedit.ota.client.session import fetch

        if self._offer is None or self._offer.rollout.patch.sha256 != order.patch:
            raise RefusedError(f"nothing to fetch: expected an offer of {order.patch[:12]}, got none", hint="poll again")
        try:
            return fetch(self._offer, folder, self._transport)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    def length(self) -> int:
        """Bytes of the patch of the last offer; 0 when there was none."""
        return 0 if self._offer is None else self._offer.rollout.patch.length


def make_source(settings: AgentSettings, store: Path, interval: float) -> tuple[Source, float | Callable[[], float]]:
    """The source that the settings name, and how often to ask it; raises InputError when its settings are not complete."""
    content = TufSource(settings, store)
    if settings.scheduler == "tuf":
        return content, interval
    if not settings.ddi:
        raise InputError("scheduler has no address: expected url in [hawkbit] or --ddi, got none", hint="https://host/TENANT")
    from edgeedit.device.hawkbit import HawkbitSource
    from edgeedit.ota.client.ddi import DdiClient, read_token

    token, link = read_token(settings.token) if settings.token else "", make_link(settings)
    source = HawkbitSource(content, lambda device: DdiClient(settings.ddi, device, token, link), store / CACHE, interval)
    return source, source.interval


def make_link(settings: AgentSettings) -> Link:
    """The client's connection settings; raises InputError for an unknown one or without the `ota` extra."""
    try:
        from edgeedit.ota.client.link import Link

        return Link(**settings.link)
    except TypeError as error:
        raise InputError(f"agent settings are wrong: expected known [link] fields, got {error}") from error


def make_delivery(settings: AgentSettings) -> Deliver | None:
    """How signed receipts leave the device: to a folder or by HTTP; None where the settings name no place."""
    if not settings.receipts:
        return None
    if settings.key is None:
        raise InputError("receipts cannot be signed: expected a device key in the settings, got none", hint="add key = ...")
    from edgeedit.ota.client.carriers import open_carrier
    from edgeedit.ota.client.receipts import Receipt, load_device_key, sign_receipt

    key, link = load_device_key(settings.key), make_link(settings)

    def deliver(rows: list[QueuedReceipt]) -> None:
        lines = []
        for row in rows:
            said = Receipt(row.device, row.release, row.sequence, row.state, row.patch, row.generation, _plain(row.reason), row.time)
            lines.append(sign_receipt(said, key))
        open_carrier(settings.receipts, link, site=settings.site, device=rows[0].device)(lines)

    return deliver


def _plain(reason: str) -> str:
    """Without what a receipt may not hold: control characters, and more than 500 bytes."""
    kept = "".join(c if c >= " " and c != "\x7f" else " " for c in reason)
    return kept.encode()[:500].decode("utf-8", "ignore")

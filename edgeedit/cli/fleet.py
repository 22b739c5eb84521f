"""`edgeedit fleet`: enrolled devices, their receipts, and who runs what."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_PATH = click.Path(path_type=Path)
_LEDGER = click.option("--ledger", envvar="EDGEEDIT_LEDGER", required=True, help="Ledger: a file, or postgresql://... (EDGEEDIT_LEDGER).")


@click.group()
def fleet() -> None:
    """Know the devices: enrol them, take their receipts, see who runs what."""


@fleet.command("enrol")
@click.argument("device")
@click.option("--public", required=True, type=_PATH, help="Public key (PEM) that signs the device's receipts.")
@click.option("--site", required=True, help="Site where the device is.")
@click.option("--profile", required=True, help="Device profile.")
@click.option("--line", default="", help="Production line.")
@click.option("--label", "labels", multiple=True, help="Free label. Repeatable.")
@_LEDGER
@json_option
def fleet_enrol(device: str, public: Path, site: str, profile: str, line: str, labels: tuple[str, ...], ledger: str, as_json: bool) -> None:
    """Add DEVICE to the ledger, or change what is known of it."""
    from edgeedit.ota.client.rollout import Device
    from edgeedit.ota.server.ledger import Enrolled, Ledger
    from edgeedit.ota.server.signers import load_device_public

    key = load_device_public(public)
    Ledger(ledger).enrol([Enrolled(Device(device, profile, line, frozenset(labels)), site, key)])
    emit({"device": device, "key_id": key.keyid}, f"device {device} with key {key.keyid}", as_json=as_json)


@fleet.command("import")
@click.argument("paths", nargs=-1, required=True, type=_PATH)
@_LEDGER
@json_option
def fleet_import(paths: tuple[Path, ...], ledger: str, as_json: bool) -> None:
    """Take in receipts from PATHS: files, or a stick that came home.  What is known already changes nothing."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.receiver import as_json as done_as_json
    from edgeedit.ota.server.receiver import as_text, ingest_files

    done = ingest_files(Ledger(ledger), paths)
    emit(done_as_json(done), as_text(done), as_json=as_json)


@fleet.command("serve")
@_LEDGER
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8443, show_default=True, help="Port to listen on.")
@click.option("--tls-cert", "cert", type=_PATH, help="Server certificate (PEM).")
@click.option("--tls-key", "key", type=_PATH, help="Its private key.")
@click.option("--tls-client-ca", "client_ca", type=_PATH, help="Authority of the devices' certificates; then no other device connects.")
def fleet_serve(ledger: str, host: str, port: int, cert: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Take receipts over HTTP: POST /receipts, one signed receipt on a line."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.receiver import serve

    serve(Ledger(ledger), host, port, cert=cert, key=key, client_ca=client_ca)


@fleet.command("listen")
@_LEDGER
@click.option("--site", required=True, help="Site whose devices are heard.")
@click.option("--host", default="127.0.0.1", show_default=True, help="MQTT broker.")
@click.option("--port", default=1883, show_default=True, help="Its port.")
def fleet_listen(ledger: str, site: str, host: str, port: int) -> None:
    """Take receipts from an MQTT broker: topic edgeedit/SITE/receipts/DEVICE."""
    import asyncio

    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.receiver import listen

    asyncio.run(listen(Ledger(ledger), host, port, site))


@fleet.command("status")
@_LEDGER
@click.option("--repo", help="Repository, for releases and expiries.")
@click.option("--site", help="This site only.")
@click.option("--silent-days", default=7, show_default=True, help="Days without a receipt after which a device counts as silent.")
@click.option("--html", type=_PATH, help="Also write one static page.")
@json_option
def fleet_status(ledger: str, repo: str | None, site: str | None, silent_days: int, html: Path | None, as_json: bool) -> None:
    """Show who runs what, how releases stand, who failed, who is silent, what expires."""
    from edgeedit.files import replace_file
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.tree import Tree
    from edgeedit.ota.server.view import as_html, as_text, fleet_view

    view = fleet_view(Ledger(ledger), None if repo is None else Tree(open_place(repo)), site=site, silent_days=silent_days)
    if html is not None:
        replace_file(html, as_html(view).encode())
    emit(view, as_text(view), as_json=as_json)

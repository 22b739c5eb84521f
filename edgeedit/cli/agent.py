"""Commands of the update service; no torch, no onnx, and no model in memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_STORE = click.option("--store", "store", required=True, type=click.Path(path_type=Path), help="The device's store folder.")


@click.group()
def agent() -> None:
    """The update service of a device."""


@agent.command("run")
@_STORE
@click.option("--config", "config", required=True, type=click.Path(path_type=Path), help="Settings file (TOML): source, site, root, ...")
@click.option("--once", is_flag=True, help="Poll once and end; exit 8 when the source cannot be reached.")
@click.option("--interval", default=60.0, show_default=True, type=click.FloatRange(min=1), help="Seconds between polls, jittered.")
@click.option("--scheduler", type=click.Choice(["tuf", "hawkbit"]), help="Who says when: the signed rollouts, or hawkBit within them.")
@click.option("--ddi", default="", help="hawkBit's address with the tenant: https://host/TENANT.")
@click.option("--token-file", "token", type=click.Path(path_type=Path), help="File with the device's hawkBit token.")
@json_option
def run_agent(
    store: Path, config: Path, once: bool, interval: float, scheduler: str | None, ddi: str, token: Path | None, as_json: bool
) -> None:
    """Poll, fetch, verify and stage releases, and deliver receipts; the application's Runtime takes what is staged."""
    from edgeedit.device.agent import Agent, Report, signalled
    from edgeedit.device.updates import load_settings, make_delivery, make_source
    from edgeedit.errors import EdgeEditError

    def show(heard: Report | EdgeEditError) -> None:
        if isinstance(heard, Report):
            text = " ".join(str(part) for part in (heard.did, heard.release, heard.reason) if part)
            emit(heard.to_json(), text, as_json=as_json)
            sys.stdout.flush()
        else:
            click.echo(f"error: {heard.message}", err=True)

    settings = load_settings(config)
    given = {"scheduler": scheduler, "ddi": ddi, "token": token}
    settings = replace(settings, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]
    source, every = make_source(settings, store, interval)
    with Agent(store, source, make_delivery(settings)) as running:
        if once:
            show(running.once())
            return
        with signalled() as stop:
            running.run(every, stop, show)


@click.command()
@_STORE
@json_option
def collect(store: Path, as_json: bool) -> None:
    """Remove patches that no kept generation names (the agent does this by itself)."""
    from edgeedit.device.store import Store

    with Store.open(store) as opened:
        done = opened.collect()
    emit(done.to_json(), f"removed {done.removed} files, {done.freed_bytes} bytes; {done.kept} patches kept", as_json=as_json)


@click.group()
def shots() -> None:
    """Frames that a monitor kept for the next edit."""


@shots.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--out", "out", required=True, type=click.Path(path_type=Path), help="New folder: images, shots.jsonl, to-label.jsonl.")
@json_option
def export_kept(folder: Path, out: Path, as_json: bool) -> None:
    """Copy the frames of FOLDER (a Collection) with the operators' verdicts as labels; the others wait for a label."""
    from edgeedit.device.monitor.collect import export_shots

    counts = export_shots(folder, out)
    text = f"{out}: {counts['labelled']} with an operator's verdict (shots.jsonl), {counts['to_label']} without one (to-label.jsonl)"
    emit({"out": str(out), **counts}, text, as_json=as_json)

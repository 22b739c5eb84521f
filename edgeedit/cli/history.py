"""`edgeedit history`: what a chain of updates gained, moved and forgot; or the ledger's sealed log of who did what."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option, progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("updates", nargs=-1, type=_PATH)
@click.option("--ledger", envvar="EDGEEDIT_LEDGER", help="Without UPDATES: a file, or postgresql://... (EDGEEDIT_LEDGER).")
@click.option("--verify", is_flag=True, help="Recompute every seal and signature; exit 5 when a row or receipt was changed.")
@click.option("--last", default=20, show_default=True, help="Rows of the log to show.")
@click.option("--bundle", type=_PATH, help="Bundle below the chain.")
@click.option("--reader", "reader_path", type=_PATH, help="Frozen reader (.npz).")
@click.option("--heldout", multiple=True, type=_PATH, help="Labelled images that judge one update; once for each, in order.")
@click.option("--control", type=_PATH, help="Labelled images that were right from the start.")
@click.option("--trust", multiple=True, type=_PATH, help="Trusted public key or folder of keys, for patches. Repeatable.")
@click.option("--max-drift", default=1.0, show_default=True, help="Shift of the features, in units of their spread, that asks to retrain.")
@click.option("--max-forgetting", default=0.01, show_default=True, help="Accuracy that later updates may take from earlier repairs (0..1).")
@click.option(
    "--max-control", default=0.05, show_default=True, help="Rise of the control error along the chain that asks to retrain (0..1)."
)
@click.option("-o", "--out", type=_PATH, help="The judged chain (JSON); an interrupted run goes on from it.")
@click.option("--html", type=_PATH, help="Also write one page with a curve.")
@json_option
def history(
    updates: tuple[Path, ...], ledger: str | None, verify: bool, last: int, bundle: Path | None, reader_path: Path | None,
    heldout: tuple[Path, ...], control: Path | None, trust: tuple[Path, ...], max_drift: float, max_forgetting: float, max_control: float,
    out: Path | None, html: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show drift and gain of a chain of UPDATES (.delta or .eep files in order, or one judged chain as .json) and what to do next.

    With --bundle, --reader, --control and --heldout the chain is judged on every session's images.  Without UPDATES: show and verify the
    ledger's sealed log of what was done.
    """
    from edgeedit.errors import InputError

    if not updates:
        if ledger is None:
            raise InputError("nothing to show: expected UPDATES or --ledger", hint="see `edgeedit history --help`")
        _log(ledger, verify, last, as_json)
        return
    if verify:
        raise InputError("only a ledger is verified here: expected --verify without UPDATES", hint="`edgeedit verify` checks a patch")
    from edgeedit.edit.history import Limits
    from edgeedit.flows.history import HistoryRequest
    from edgeedit.flows.history import history as compute
    from edgeedit.report.history import as_text, save_history

    request = HistoryRequest(updates, bundle, reader_path, control, heldout, trust, out, Limits(max_drift, max_forgetting, max_control))
    view = compute(request, progress())
    if html is not None:
        save_history(view, html)
    emit({**view, "html": str(html) if html else None}, as_text(view), as_json=as_json)


def _log(ledger: str, verify: bool, last: int, as_json: bool) -> None:
    from edgeedit.ota.server.ledger import Ledger, as_time

    book = Ledger(ledger)
    value = {"verified": False, "rows": [], "hash": ""}
    if verify:
        count, head = book.verify_history()
        value |= {"verified": True, "count": count, "hash": head}
    rows = book.history()[-last:] if last else []
    value["rows"] = rows
    lines = [f"{row['number']:>6}  {as_time(row['time'])}  {row['event']:<20} {row['subject']}" for row in rows]
    if verify:
        lines.append(f"ok: {value['count']} rows; note the last hash elsewhere: {value['hash']}")
    emit(value, "\n".join(lines), as_json=as_json)

"""`edgeedit rollout`: which devices take which patch, in stages."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_PATH = click.Path(path_type=Path)
_REPO = click.argument("repo")
_SITE = click.option("--site", required=True, help="Site of the release.")
_LEDGER = click.option("--ledger", envvar="EDGEEDIT_LEDGER", required=True, help="Ledger: a file, or postgresql://... (EDGEEDIT_LEDGER).")
_KEY = click.option(
    "--key", "keys", multiple=True, required=True, help="Private keys: the site's release key and the online key. Repeatable."
)
_BY = click.option("--approve", "by", default="", help="Your name: approves the stage that opens, and goes into the history.")


@click.group()
def rollout() -> None:
    """Release a patch to a site in stages; every step is a signed document."""


@rollout.command("plan")
@_REPO
@_LEDGER
@_SITE
@click.option("--release", required=True, help="Name of the release.")
@click.option("--profile", required=True, help="Device profile.")
@click.option("--patch", required=True, help="SHA-256 of the published patch.")
@click.option("--stage", "stages", multiple=True, required=True, help="canary=3 | early=5%,soak=3600 | lab=id:a+b | all=100%,approval")
@click.option("--window", "windows", multiple=True, help="Maintenance window in UTC: mon,tue@22:00+120. Repeatable.")
@click.option("--min-reports", default=1, show_default=True, help="Reports that a stage needs.")
@click.option("--success", default=950, show_default=True, help="Confirmed reports, per mille, that a stage needs.")
@click.option("--error-count", default=3, show_default=True, help="Reverted devices at which the release halts.")
@click.option("--error-rate", default=50, show_default=True, help="Reverted reports, per mille, at which the release halts.")
@click.option("--unknown", default=200, show_default=True, help="Silent devices, per mille, that a stage may have.")
@click.option("--supersedes", default="", help="Release that this one replaces.")
@click.option("-o", "--out", required=True, type=_PATH, help="Plan to read and then start.")
@json_option
def rollout_plan(
    repo: str,
    ledger: str,
    site: str,
    release: str,
    profile: str,
    patch: str,
    stages: tuple[str, ...],
    windows: tuple[str, ...],
    min_reports: int,
    success: int,
    error_count: int,
    error_rate: int,
    unknown: int,
    supersedes: str,
    out: Path,
    as_json: bool,
) -> None:
    """Write the plan of a release: exact counts for the devices that the ledger knows.  Publishes nothing."""
    from edgeedit.files import replace_file
    from edgeedit.flows.release import ReleasePlan, plan_release
    from edgeedit.ota.client.rollout import Conditions, encode_rollout
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import parse_wanted, parse_window
    from edgeedit.ota.server.tree import Tree

    plan = ReleasePlan(
        release,
        site,
        profile,
        patch,
        tuple(map(parse_wanted, stages)),
        Conditions(min_reports, success, error_count, error_rate, unknown),
        tuple(map(parse_window, windows)),
        supersedes,
    )
    made = plan_release(Tree(open_place(repo)), Ledger(ledger), plan)
    replace_file(out, encode_rollout(made))
    lines = [f"{s.name:<16} {s.count:>6} devices  soak {s.soak} s{'  needs approval' if s.approval else ''}" for s in made.stages]
    emit(
        {"plan": str(out), "stages": [{"name": s.name, "count": s.count} for s in made.stages]},
        "\n".join([*lines, f"plan {out}"]),
        as_json=as_json,
    )


@rollout.command("start")
@_REPO
@click.argument("plan", type=_PATH)
@_LEDGER
@_KEY
@_BY
@json_option
def rollout_start(repo: str, plan: Path, ledger: str, keys: tuple[str, ...], by: str, as_json: bool) -> None:
    """Publish PLAN with its first stage open."""
    from edgeedit.errors import InputError
    from edgeedit.ota.client.rollout import parse_rollout
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import start
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    try:
        document = parse_rollout(plan.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {plan}: {error.strerror or error}", hint="make it with `edgeedit rollout plan`") from error
    made = start(Tree(open_place(repo)), document, load_keyring(keys), Ledger(ledger), by)
    _show(made, as_json)


@rollout.command("advance")
@_REPO
@click.argument("release")
@_SITE
@_LEDGER
@_KEY
@_BY
@json_option
def rollout_advance(repo: str, release: str, site: str, ledger: str, keys: tuple[str, ...], by: str, as_json: bool) -> None:
    """Open the next stage of RELEASE.  Exit 3 when its conditions do not hold (it is halted when an error condition tripped)."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import advance
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    made, _ = advance(Tree(open_place(repo)), site, release, load_keyring(keys), Ledger(ledger), by)
    _show(made, as_json)


@rollout.command("halt")
@_REPO
@click.argument("release")
@_SITE
@click.option(
    "--state", type=click.Choice(["halted", "paused", "running"]), default="halted", show_default=True, help="`running` goes on again."
)
@_LEDGER
@_KEY
@_BY
@json_option
def rollout_halt(repo: str, release: str, site: str, state: str, ledger: str, keys: tuple[str, ...], by: str, as_json: bool) -> None:
    """Stop RELEASE: no device takes it from its next poll on.  Devices that have it keep it."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import halt
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    _show(halt(Tree(open_place(repo)), site, release, load_keyring(keys), Ledger(ledger), state=state, by=by), as_json)


@rollout.command("withdraw")
@_REPO
@click.argument("release")
@_SITE
@click.option("--to", "generation", default="", help="Fingerprint to return to; by default the one before the release.")
@click.option("--patch", default="", help="Digest of the patch that made it; by default found in the repository.")
@_LEDGER
@_KEY
@_BY
@json_option
def rollout_withdraw(
    repo: str, release: str, site: str, generation: str, patch: str, ledger: str, keys: tuple[str, ...], by: str, as_json: bool
) -> None:
    """Order devices that have RELEASE back to an earlier generation."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import withdraw
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    ring, book = load_keyring(keys), Ledger(ledger)
    _show(withdraw(Tree(open_place(repo)), site, release, ring, book, generation=generation, patch=patch, by=by), as_json)


@rollout.command("status")
@_REPO
@click.argument("release")
@_SITE
@_LEDGER
@json_option
def rollout_status(repo: str, release: str, site: str, ledger: str, as_json: bool) -> None:
    """Show how RELEASE stands, and why the next stage may or may not open."""
    from edgeedit.ota.server.ledger import Ledger
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import judge, read_rollout
    from edgeedit.ota.server.tree import Tree

    document = read_rollout(Tree(open_place(repo)), site, release)
    standing = judge(document, Ledger(ledger))
    lines = [
        f"release {release} at {site}: {document.state}, stage {standing.stage} ({document.opened} of {len(document.stages)})",
        f"{standing.devices} devices: {standing.confirmed} confirmed, {standing.reverted} reverted, {standing.silent} silent",
        f"next: {standing.verdict}",
        *(f"  {reason}" for reason in standing.reasons),
    ]
    emit({**standing.__dict__, "state": document.state, "opened": document.opened}, "\n".join(lines), as_json=as_json)


def _show(document: object, as_json: bool) -> None:
    from edgeedit.ota.client.rollout import Rollout

    if isinstance(document, Rollout):
        names = [stage.name for stage in document.stages[: document.opened]]
        value = {"release": document.release, "state": document.state, "sequence": document.sequence, "open": names}
        emit(
            value,
            f"release {document.release}: {document.state}, open {', '.join(names) or 'none'}, sequence {document.sequence}",
            as_json=as_json,
        )

"""Entry point: a lazy click group, so that `--help` imports no room, and the one place that turns errors into exit codes.

Guarantees: results go to stdout, progress and errors to stderr; an error the user can act on prints one sentence and a
`hint:` line, never a stack trace; the exit code is the error's own (see `edgeedit.errors`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence

import click

from edgeedit import __version__
from edgeedit.errors import EdgeEditError

# command -> (module, attribute, one line of help); the module is imported only when the command runs.
COMMANDS = {
    "export": ("edgeedit.cli.server", "export", "Build a Bundle (graph, weights, map, probes) from an encoder."),
    "reader": ("edgeedit.cli.server", "reader", "Fit and freeze a reader (linear head or class prototypes)."),
    "reference": ("edgeedit.cli.server", "reference", "Ship the features of clean images in a Bundle, for the field monitor."),
    "edit": ("edgeedit.cli.server", "edit", "Repair the encoder from labelled shots; writes a .delta."),
    "tune": ("edgeedit.cli.outside", "tune", "Search locality settings on a validation split."),
    "import-peft": ("edgeedit.cli.outside", "import_peft", "Turn a PEFT LoRA adapter into a judged .delta."),
    "import-checkpoint": ("edgeedit.cli.outside", "import_checkpoint", "Turn a fine-tuned checkpoint into a judged .delta."),
    "explain": ("edgeedit.cli.explain", "explain", "Say what an edit touched and what each part of it does."),
    "report": ("edgeedit.cli.explain", "report", "Render a .delta as one self-contained HTML file."),
    "card": ("edgeedit.cli.card", "card", "Write a model card and a CycloneDX bill of materials."),
    "compare": ("edgeedit.cli.server", "compare", "Compare the torch encoder with a Bundle on its probes."),
    "demo": ("edgeedit.cli.server", "demo", "Run the whole chain on a real encoder and real images."),
    "pack": ("edgeedit.cli.server", "pack", "Lower a .delta onto a Bundle and sign it as a patch."),
    "keys": ("edgeedit.cli.patch", "keys", "Make signing keys."),
    "inspect": ("edgeedit.cli.patch", "inspect", "Verify a patch and show what it holds."),
    "verify": ("edgeedit.cli.patch", "verify", "Verify a patch's signature, table and sections."),
    "diff": ("edgeedit.cli.algebra", "diff", "Show in what two patches differ."),
    "conflicts": ("edgeedit.cli.algebra", "conflicts", "Show where two patches change the same weights."),
    "squash": ("edgeedit.cli.algebra", "squash", "Make one patch of a chain, with the same result bit for bit."),
    "materialize": ("edgeedit.cli.algebra", "materialize", "Write base + patches as a new weights file or Bundle."),
    "repo": ("edgeedit.cli.repo", "repo", "Publish patches as a static TUF repository."),
    "rollout": ("edgeedit.cli.rollout", "rollout", "Release a patch to a site in stages."),
    "fleet": ("edgeedit.cli.fleet", "fleet", "Enrol devices, take their receipts, see who runs what."),
    "history": ("edgeedit.cli.history", "history", "Show what a chain of updates gained and moved, or the ledger's log."),
    "provision": ("edgeedit.cli.device", "provision", "Put a Bundle and trusted keys on a device, once."),
    "apply": ("edgeedit.cli.device", "apply", "Stage a patch and try it in an engine of its own."),
    "stage": ("edgeedit.cli.device", "stage", "Verify and stage a patch for a running application to take."),
    "status": ("edgeedit.cli.device", "status", "Show what a store runs and its history."),
    "rollback": ("edgeedit.cli.device", "rollback", "Return to the former generation, bit for bit."),
    "agent": ("edgeedit.cli.agent", "agent", "Poll for releases, fetch, verify and stage them (a service)."),
    "collect": ("edgeedit.cli.agent", "collect", "Remove patches that no kept generation names."),
    "shots": ("edgeedit.cli.agent", "shots", "Make a set of the frames that a monitor kept."),
    "build-engine": ("edgeedit.cli.device", "build_engine", "Build and prove the TensorRT engine on this device."),
    "bench": ("edgeedit.cli.device", "bench", "Measure frames before, during and after a swap on this device."),
    "doctor": ("edgeedit.cli.device", "doctor", "Check this machine and a store; says how to fix what is wrong."),
}
EXIT_CODES = """Exit codes: 0 ok; 1 unexpected; 2 usage or unusable input; 3 quality gate; 4 base, device or order mismatch;
5 signature, integrity or format; 6 refused by device or runtime; 7 applied, then reverted; 8 not reachable, try later."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeedit")
def cli() -> None:
    """Repair a vision encoder from a few shots and patch it into running cameras."""


def _report(error: EdgeEditError, as_json: bool) -> None:
    if as_json:
        body = {"schema_version": 1, "error": error.message, "hint": error.hint, "code": error.exit_code}
        click.echo(json.dumps(body, sort_keys=True, ensure_ascii=False))
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in arguments
    try:
        result = cli.main(args=list(arguments), prog_name="edgeedit", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("error: interrupted", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return 2
    except EdgeEditError as error:
        _report(error, as_json)
        return error.exit_code
    except ModuleNotFoundError as error:
        missing = EdgeEditError(f"package is missing: expected {error.name}", hint='pip install "edgeedit[server,ort,report,card]"')
        missing.exit_code = 6
        _report(missing, as_json)
        return 6
    except Exception as error:
        if os.environ.get("EDGEEDIT_DEBUG"):
            raise
        _report(EdgeEditError(f"unexpected {type(error).__name__}: {error}", hint="set EDGEEDIT_DEBUG=1 and report the trace"), as_json)
        return 1
    return result if isinstance(result, int) else 0


def main() -> None:
    """Console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

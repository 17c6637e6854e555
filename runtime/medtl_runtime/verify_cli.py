"""The command ``medtl-infer verify``: whether an audit log is whole."""

import json
from pathlib import Path

import click

from medtl_runtime import commands


@click.command(context_settings=commands.SETTINGS)
@click.argument("log", type=commands.PATH, metavar="AUDIT.jsonl")
@click.option(
    "--head",
    metavar="HASH",
    help="A head that this command, or a run, has shown: it must be there.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(
    log: Path,
    head: str | None,
    as_json: bool,
) -> None:
    """Check that no entry of an audit log was changed, removed or moved.

    What was cut off at the end leaves no trace in the file. Note the head that is shown here in
    another place, and give it the next time; the log may have grown since.

    \b
    Examples:
      medtl-infer verify audit.jsonl
      medtl-infer verify audit.jsonl --head 5feceb66ffc8…

    Exit codes: 0 whole, 1 an entry was changed, removed or moved, 2 usage.
    """
    from medtl_runtime import audit

    verified = audit.verify(log, head)
    if as_json:
        row = {"entries": verified.entries, "head": verified.head, "noted": verified.noted}
        commands.show(json.dumps(row))
        return
    commands.show(f"{verified.entries} entries, each follows the one before it")
    commands.show(f"head {verified.head}")
    if verified.noted is not None:
        since = verified.entries - verified.noted
        commands.show(f"the head that was given is that of line {verified.noted}; {since} since")
    else:
        commands.show(
            "Entries cut off at the end cannot be seen from the file alone: note this head "
            "elsewhere, and give it as --head the next time."
        )

"""The commands of a site: its policy, and its audit log."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from triskel.cli.output import write_text
from triskel.config.read import load, parse
from triskel.core.console import echo
from triskel.errors import JobError

app = typer.Typer(no_args_is_help=True, help="The policy of a site, and its audit log.")


@app.command("init")
def site_init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path(
        "policy.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a policy that allows nothing yet, with every key and what it means."""
    from triskel.policy.template import TEMPLATE

    write_text(file, TEMPLATE, force=force)
    echo(f"{file} allows nothing yet; edit it, then run `triskel site check {file} JOB`")


@app.command("check")
def site_check(
    policy: Annotated[
        Path, typer.Argument(metavar="POLICY", help="A site's policy.", show_default=False)
    ],
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file.", show_default=False)],
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who would submit the job.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many clients the federation has.")
    ] = None,
    up_mb: Annotated[
        float | None,
        typer.Option(min=0, help="Megabytes that this site would send in a round."),
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(help="When it would start, in UTC.", show_default="now")
    ] = None,
) -> None:
    """Say whether a job may run at a site, or everything that the policy has against it."""
    from triskel.policy.decide import wanted
    from triskel.policy.limits import MB
    from triskel.policy.paths import decided, importable
    from triskel.policy.read import load as load_policy
    from triskel.policy.refusal import Circumstances
    from triskel.policy.rules import held_to, unsaid

    rules, _ = load_policy(policy)
    may = importable(rules)  # nothing else of what a job names runs here
    load(job, imports=may)  # says what cannot be read; names of datasets are not paths, so again:
    asked = parse(job.read_text(encoding="utf-8"), where=str(job), imports=may)
    when = datetime.now(UTC) if at is None else at.replace(tzinfo=UTC)
    here = Circumstances(
        now=when,
        submitter=by,
        clients=clients,
        round_bytes=None if up_mb is None else round(up_mb * MB),
    )
    refusals = decided(rules, policy, asked, rules.site, here)
    for line in (unsaid(rules), *held_to(rules)):
        if line:
            echo(line, err=True)  # what is printed to stdout is the decision
    for refusal in refusals:
        echo(str(refusal))
    if refusals:
        raise typer.Exit(1)
    echo(f"{job} may run here: mode {asked.mode}, datasets {', '.join(sorted(wanted(asked)))}")


@app.command("hash")
def site_hash(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A model's folder, an asset or a hub model.",
                       show_default=False),
    ],
) -> None:  # fmt: skip
    """Print the line that names a model in a policy: the SHA-256 of all that is loaded of it."""
    from triskel.policy.model_hash import weights
    from triskel.policy.paths import model_folder

    place = folder if folder.is_dir() else model_folder(str(folder), Path("policy.toml"))
    found = None if place is None else weights(place)
    if found is None:
        raise JobError(f"{folder} holds no model in safetensors; fetch it, or name its folder")
    echo(f'{json.dumps(folder.name)} = "{found.sha256}"')


@app.command("budget")
def site_budget(
    policy: Annotated[
        Path,
        typer.Argument(metavar="POLICY", help="The policy in a site's kit.", show_default=False),
    ],
) -> None:
    """Say what all jobs together had of each file of a dataset, and of how much."""
    from triskel.policy.budget import lines
    from triskel.policy.read import load as load_policy

    rules, _ = load_policy(policy)
    kept = policy.resolve().parent.parent / "triskel"
    found = list(lines(kept, rules.budget))
    for line in found or [f"nothing was given yet; what is will be in {kept}"]:
        echo(line)


@app.command("audit")
def site_audit(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="A site's audit log.", show_default=False)
    ],
    seen: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256", help="A hash noted earlier, or its first digits: it must be there."
        ),
    ] = None,
) -> None:
    """List what a site decided and what left it, and verify that no line was changed."""
    from triskel.policy.hash_chain import START, read
    from triskel.policy.listing import Clock, line_of

    last, count, clock = START, 0, Clock()
    for entry in read(log, seen=seen):
        echo(line_of(entry))
        clock.saw(entry)
        last, count = entry.get("sha256", last), entry.get("n", count)
    echo(f"{count} lines, none changed; the last one's SHA-256: {last}")
    for finding in clock.findings:
        echo(finding)
    if clock.findings:
        raise typer.Exit(1)

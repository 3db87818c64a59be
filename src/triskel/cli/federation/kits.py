"""The commands that make a federation: certificates, keys, and what each party allows."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from triskel.cli.federation.arguments import Folder, Sites
from triskel.core.console import echo
from triskel.errors import JobError

if TYPE_CHECKING:
    from triskel.federation.kits import Kit

app = typer.Typer()
Renew = Annotated[
    bool, typer.Option("--renew", help="The party goes on, with a new key and certificate.")
]


@app.command()
def new(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)
    ],
    sites: Sites = None,
    server: Annotated[
        str, typer.Option(metavar="HOST", help="Where every site reaches the server.")
    ] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's one port.")] = 8002,
    admin: Annotated[
        str, typer.Option(metavar="NAME@ORG", help="Who submits jobs.")
    ] = "lead@federation.local",
    name: Annotated[str, typer.Option(help="The federation's name.")] = "triskel",
    scheme: Annotated[
        str, typer.Option(help="tcp, which is faster, or http, which passes proxies.")
    ] = "tcp",
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Each site makes its key itself, and keeps it.")
    ] = False,
) -> None:
    """Make the kits of a federation: certificates, keys, and what each party allows."""
    if scheme not in {"tcp", "http"}:
        raise JobError(f"--scheme must be tcp or http, got {scheme!r}")
    if distributed and sites:
        raise JobError("--distributed takes no --site; each site runs `triskel federation request`")
    from triskel.federation.provision import Plan
    from triskel.federation.provision import new as make

    kind = cast("Literal['tcp', 'http']", scheme)
    plan = Plan(tuple(sites or ()), name, server, port, admin, kind)
    if not distributed:
        _list_kits(make(folder, plan))
        echo(_after_new(folder, plan.sites))
        return
    from triskel.federation.distributed import found

    made, print_ = found(folder, plan)
    _list_kits(made)
    echo(
        f"\nThe authority's key is in {folder / 'ca'}: keep it here, and safe.\n"
        f"Its fingerprint: {print_}\n"
        "Tell it to every site over another channel than the files, by telephone for example.\n"
        f"Next, at each site: triskel federation request FOLDER --site NAME --federation {name}"
    )


def _after_new(folder: Path, sites: Sequence[str]) -> str:
    first = folder / "kits" / sites[0]
    return (
        f"\nThe authority's key is in {folder / 'ca'}: keep it here, and safe.\n"
        "Next: let each site allow something, as these policies refuse every job:\n"
        f"  edit {first / 'local' / 'policy.toml'}\n"
        f"Then, on one machine: triskel federation start {folder}\n"
        f"On several: triskel federation pack {first}, send the file to its host, remove both here;"
        " there: triskel federation unpack FILE, then start KIT"
    )


@app.command()
def add(folder: Folder, sites: Sites = None) -> None:
    """Make kits for more sites; those that are there stay as they are."""
    from triskel.federation.provision import add as more

    if not sites:
        raise JobError("--site must name the sites to add, such as --site clinic")
    made = more(folder, sites)
    _list_kits(made)
    echo(f"Next: edit local/policy.toml there, then start {', '.join(k.name for k in made)}")


@app.command()
def request(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder.", show_default=False)
    ],
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="The site's name.")
    ] = None,
    admin: Annotated[
        str | None, typer.Option(metavar="NAME@ORG", help="Or one more who submits jobs.")
    ] = None,
    federation: Annotated[
        str, typer.Option(metavar="NAME", help="The federation's name.")
    ] = "triskel",
) -> None:
    """Make a key that stays here, and a request that goes to the lead."""
    named = [name for name in (site, admin) if name]
    if len(named) != 1 or (admin is None) == ("@" in named[0]):
        raise JobError("give --site NAME for a site, or --admin NAME@ORG for an administrator")
    from triskel.federation.distributed import ask

    file = ask(folder, named[0], federation)
    echo(
        f"{file} holds no key: send it to the lead.\n"
        f"{file.parent / named[0]}.key is the key: it never leaves this machine.\n"
        f"When the signed file is back: triskel federation join {folder} {named[0]}.signed.zip "
        "--fingerprint ..."
    )


@app.command()
def approve(
    folder: Folder,
    asked: Annotated[
        Path,
        typer.Argument(metavar="REQUEST", help="A site's request.", exists=True, dir_okay=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    renew: Renew = False,
) -> None:
    """Sign a site's request, at the lead."""
    from triskel.federation.distributed import approve as sign
    from triskel.federation.distributed import request_of

    request = request_of(asked)
    whom = f"{request.kind} {request.name} of {request.org}"
    if not yes:
        typer.confirm(f"Does this request come from {whom}?", abort=True)
    signed = sign(folder, request, renew=renew)
    echo(
        f"{signed.path} admits {whom}: send it back.\n"
        f"Fingerprint, over another channel: {signed.fingerprint}"
    )
    _left_over(folder)


@app.command()
def join(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder.", show_default=False)
    ],
    signed: Annotated[
        Path,
        typer.Argument(metavar="SIGNED", help="What the lead sent.", exists=True, dir_okay=False),
    ],
    fingerprint: Annotated[
        str, typer.Option(help="The authority's, which the lead told over another channel.")
    ],
    renew: Renew = False,
) -> None:
    """Make the site's kit from its key and what the lead signed."""
    from triskel.federation.distributed import join as make

    kit = make(folder, signed, fingerprint, renew=renew)
    _list_kits((kit,))
    echo(
        f"Next: edit {_short(kit.local / 'policy.toml')}, then triskel federation start {folder}"
        if kit.kind == "site"
        else f"Next: triskel federation status {folder}"
    )


@app.command("renew")
def renew_party(
    folder: Folder,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A party with a key here.", show_default=False)
    ],
) -> None:
    """Make a new key and certificate for a party that goes on, at the lead."""
    from triskel.federation.renewal import renew

    made = renew(folder, name)
    _list_kits((made.kit,))
    echo(
        "It has a new key and certificate; what it allows and keeps is as it was."
        if made.here
        else "Next: triskel federation pack it, and at its party: triskel federation unpack --renew"
    )
    _left_over(folder)


def _left_over(folder: Path) -> None:
    from triskel.federation.authority import left_over

    for line in left_over(folder):
        echo(line)


Secret = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="A file that holds the password.",
                 exists=True, dir_okay=False),
]  # fmt: skip


def _password(file: Path | None) -> bytes:
    from triskel.core.untrusted import data_of

    if file is None:
        return b""
    try:
        found = data_of(file, most=1 << 16).strip()
    except (OSError, ValueError) as error:
        raise JobError(f"--password-file {file} cannot be read: {error}") from error
    if not found:
        raise JobError(f"--password-file {file} holds no password")
    return found


@app.command()
def pack(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="A party's kit.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to; KIT.kit by default.")
    ] = None,
    password_file: Secret = None,
) -> None:
    """Write a kit as one file that only you can read, for its way to its party."""
    from triskel.federation.kits import kit_at
    from triskel.federation.pack import pack as packed

    found = kit_at(kit)
    if found is None:
        raise JobError(f"{kit} is no kit; they are in FOLDER/kits")
    password = _password(password_file)
    target = packed(found, out or Path(f"{found.path.name}.kit"), password)
    how = "encrypted" if password else "not encrypted: it holds a private key"
    echo(f"{target} holds the kit of {found.name}, {how}")


@app.command()
def unpack(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A packed kit.", exists=True, dir_okay=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the kit goes.")] = Path(),
    password_file: Secret = None,
    renew: Renew = False,
) -> None:
    """Write a packed kit where its party runs it."""
    from triskel.federation.pack import unpack as unpacked

    kit = unpacked(file, folder, _password(password_file), renew=renew)
    _list_kits((kit,))


@app.command()
def revoke(
    folder: Folder,
    whom: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A party, or a certificate's number.",
                       show_default=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:  # fmt: skip
    """Take a site's or an administrator's certificate back, at the lead."""
    from triskel.federation.authority import revoke as take_back
    from triskel.policy.revoked import LIST

    if not yes:
        typer.confirm(f"Shut {whom!r} out of the federation for good?", abort=True)
    for one in take_back(folder, whom):
        echo(f"{one.name}: certificate {one.serial} is revoked")
    echo(
        f"Nodes of this folder refuse it from now on. For nodes elsewhere: send them "
        f"{folder / 'ca' / LIST}; there, triskel federation deny FOLDER {LIST}"
    )


@app.command()
def deny(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A kit, or a folder of kits.", show_default=False),
    ],
    revoked: Annotated[
        Path,
        typer.Argument(metavar="LIST", help="What the lead sent.", exists=True, dir_okay=False),
    ],
) -> None:
    """Take up the lead's list of revoked certificates, at a node; it may be running."""
    from triskel.federation.authority import install
    from triskel.federation.kits import nodes_in

    for kit in nodes_in(folder):
        number = install(kit, revoked)
        echo(f"{kit.name} holds list {number} from now on")


@app.command()
def harden(folder: Folder) -> None:
    """Write the rules of a hardened node again, where they were changed."""
    from triskel.federation.harden import harden as tighten
    from triskel.federation.harden import weakness
    from triskel.federation.kits import nodes_in

    for kit in nodes_in(folder):
        lost = weakness(kit)
        tighten(kit)
        echo(f"{kit.name}: {lost or 'was hardened already'}")


def _list_kits(kits: Sequence["Kit"]) -> None:
    for kit in kits:
        echo(f"{kit.kind:6}  {kit.name:24}  {_short(kit.path)}")


def _short(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path

"""What the pages say is true: Python blocks run, jobs parse, commands exist, links lead somewhere.

In a page, a ```python block runs by itself in an empty folder, and a ```toml block is a job. One
that is only an excerpt says so after the language: ```python fragment (it must still compile) and
```toml fragment (it must still be TOML). In ```console blocks the lines after `$ ` are commands,
in ```bash and ```sh blocks every line is.
"""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<inline>[^)\s]+)[^)]*\)|(?:src|href)=\"(?P<html>[^\"]+)\"")
HEADING = re.compile(r"^#{1,6}[ \t]+(.*?)[ \t]*#*$", re.MULTILINE)
SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")"}
REDIRECTIONS = {">", ">>", "<"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text and where it stands."""

    language: str
    words: tuple[str, ...]
    text: str
    where: str


def blocks_in(text: str, name: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for found in FENCE.finditer(text):
        language, *words = found["info"].split() or [""]
        line = text.count("\n", 0, found.start()) + 1
        yield Block(language, tuple(words), found["text"], f"{name}:{line}")


def commands_in(block: Block) -> Iterator[list[str]]:
    """Yield each simple command of a shell block: its words, no variables, no redirections."""
    prompt = "$ " if block.language == "console" else ""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if not line.startswith(prompt):
            continue
        lexer = shlex.shlex(line.removeprefix(prompt), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        yield from _split(words)


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if skip:
            skip = False
        elif word in REDIRECTIONS:
            skip = True
        elif word in SEPARATORS:
            if command:
                yield command
            command = []
        elif command or not re.match(r"[A-Za-z_]\w*=", word):
            command.append(word)


def refuse_unknown(command: Any, words: list[str]) -> None:  # noqa: ANN401  typer hides its type
    """Raise what the command line would raise on these words, before it looks at their values."""
    context = command.make_context(command.name or "triskel", [], resilient_parsing=True)
    context.resilient_parsing = False
    given, rest, _ = command.make_parser(context).parse_args(args=list(words))
    if hasattr(command, "commands"):
        if rest:
            name, *more = rest
            known = sorted(command.commands)
            assert name in known, f"no command {name!r}, there are {known}"
            refuse_unknown(command.commands[name], more)
    else:
        assert not rest, f"{command.name} takes no further argument, got {rest}"
        missing = [
            option.name
            for option in command.params
            if option.required and given.get(option.name) is None and "help" not in given
        ]
        assert "--help" in words or not missing, f"{command.name} misses {missing}"


def anchors_in(text: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts write them."""
    headings = HEADING.findall(FENCE.sub("", text))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def links_in(text: str) -> Iterator[str]:
    """Yield the local targets that a page links to."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for found in LINK.finditer(prose):
        target = found["inline"] or found["html"]
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield target


def _named(block: Block) -> str:
    return block.where


BLOCKS = [
    block
    for page in PAGES
    for block in blocks_in(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
TOML = [block for block in BLOCKS if block.language == "toml"]
SHELL = [block for block in BLOCKS if block.language in {"console", "bash", "sh"}]


@pytest.mark.parametrize("block", PYTHON, ids=_named)
def test_a_python_block_runs_by_itself(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(block.text, block.where, "exec")
    if "fragment" not in block.words:
        monkeypatch.chdir(tmp_path)
        exec(code, {"__name__": "__main__"})  # noqa: S102  our own pages


@pytest.mark.parametrize("block", TOML, ids=_named)
def test_a_toml_block_is_a_job(block: Block) -> None:
    tomllib.loads(block.text)
    if "fragment" not in block.words:
        job = importlib.import_module("triskel.config.read")
        job.parse(block.text, where=block.where)


@pytest.mark.parametrize("block", SHELL, ids=_named)
def test_a_command_exists_with_its_options(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for program, *words in commands_in(block):
        if Path(program).name == "make":
            goals = [word for word in words if "=" not in word and not word.startswith("-")]
            assert set(goals) <= targets, f"{block.where}: make {' '.join(words)}"
        if Path(program).name == "triskel":
            cli = importlib.import_module("triskel.cli")
            from typer.main import get_command  # noqa: PLC0415  only where a command is shown

            refuse_unknown(get_command(cli.app), words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in links_in(text):
        name, _, anchor = target.partition("#")
        aim = page if not name else (page.parent / name)
        assert aim.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and aim.suffix == ".md":
            known = anchors_in(aim.read_text(encoding="utf-8"))
            assert anchor in known, f"{page.name} links to {target}, there is {sorted(known)}"


def test_the_reader_of_pages_finds_every_kind_of_block_command_and_link() -> None:
    text = (
        "# One Title: `x`\n[a](b.md#c) [w](https://example.org) `[no](no.md)`\n"
        '<img src="p.png">\n'
        "```console\n$ A=1 triskel compare job.toml > out.txt && make demo\nprinted\n```\n"
        "```bash\n# a comment\ntriskel run \\\n  a.toml | tee b\n```\n"
        "```toml fragment\n[a](inside.md)\n```\n"
    )
    console, bash, toml = blocks_in(text, "page.md")
    assert list(commands_in(console)) == [["triskel", "compare", "job.toml"], ["make", "demo"]]
    assert list(commands_in(bash)) == [["triskel", "run", "a.toml"], ["tee", "b"]]
    assert (toml.words, toml.where) == (("fragment",), "page.md:13")
    assert list(links_in(text)) == ["b.md#c", "p.png"]
    assert anchors_in(text) == {"one-title-x"}


def test_a_command_that_is_not_there_is_refused() -> None:
    typer = importlib.import_module("typer")
    app = typer.Typer()
    assets = typer.Typer()
    app.add_typer(assets, name="assets")

    @assets.command()
    def get(name: str, *, force: bool = False) -> None: ...

    @assets.command("list")
    def list_() -> None: ...

    from typer.main import get_command  # noqa: PLC0415  beside the application it reads

    command = get_command(app)
    refuse_unknown(command, ["assets", "get", "opinions", "--force"])
    refuse_unknown(command, ["assets", "get", "--help"])
    for words in (["asset"], ["assets", "got"], ["assets", "get"], ["assets", "list", "x"]):
        with pytest.raises(AssertionError):
            refuse_unknown(command, words)
    with pytest.raises(Exception, match="--forse"):
        refuse_unknown(command, ["assets", "get", "x", "--forse"])

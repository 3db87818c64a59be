"""Checks types and shapes of every function under `triskel` while tests run.

jaxtyping's own import hook checks the same with two made-up functions for each real one, and binds
each call's arguments anew: half of the time that the tests took. Here beartype wraps the function
itself, in a context of jaxtyping's, so that a letter means one size in a signature.
"""

import ast
import functools
import importlib.machinery
import inspect
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ForwardRef, Literal, NewType, Self, TypeVar, get_args, get_origin

import beartype
from covered import PROBES
from jaxtyping import AbstractArray, jaxtyped

PACKAGE, NAME = "triskel", "__checked__"
# int passes for float; Self is beyond beartype in a class that pydantic builds
TYPED = beartype.beartype(
    conf=beartype.BeartypeConf(
        is_pep484_tower=True, hint_overrides=beartype.FrozenDict({Self: object})
    )
)
CONTEXT = jaxtyped("context")  # keeps nothing itself, so that all calls may share it


def checked(made: Any) -> Any:  # noqa: ANN401 - functions and classes of every kind
    """Return a function that checks what it takes and gives; a dataclass checks its fields."""
    if isinstance(made, type):
        init = made.__dict__.get("__init__")
        if is_dataclass(made) and init is not None and not hasattr(init, "__wrapped__"):
            made.__init__ = checked(init)
        return made
    sizes = [size for hint in inspect.get_annotations(made).values() for size in _sizes(hint)]
    later = inspect.isgeneratorfunction(made) or inspect.iscoroutinefunction(made)
    if later or any("{" in size for size in sizes):
        # Its body runs after the call; or what a hint means is not known yet, or not to beartype.
        return jaxtyped(made, typechecker=TYPED)
    typed = TYPED(made)
    return _in_context(made, typed) if sizes else typed


def _in_context(function: Callable[..., Any], typed: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def within(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the function
        __tracebackhide__ = True
        with CONTEXT:
            return typed(*args, **named)

    return within


def _sizes(hint: Any) -> Iterator[str]:  # noqa: ANN401 - of every kind
    """Return the sizes that a hint speaks of; what is said in braces or by name is for later."""
    if isinstance(hint, list):  # what a callable takes
        for part in hint:
            yield from _sizes(part)
    elif isinstance(hint, str | ForwardRef):
        yield "{" + str(hint) + "}"
    elif isinstance(hint, TypeVar):
        yield hint.__name__
    elif isinstance(hint, NewType):
        yield from _sizes(hint.__supertype__)
    elif isinstance(hint, type) and issubclass(hint, AbstractArray):
        yield hint.dim_str
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _sizes(part)


class _Decorate(ast.NodeVisitor):
    """Decorates functions first, before others change them, and classes last, once made."""

    def _name(self, node: ast.AST) -> ast.expr:
        return ast.copy_location(ast.Name(NAME, ast.Load()), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        node.decorator_list.append(self._name(node))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        node.decorator_list.insert(0, self._name(node))
        self.generic_visit(node)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with every function decorated; its bytecode is kept under another name."""

    kept = (
        f".{PACKAGE}-{zlib.crc32(Path(__file__).read_bytes()):08x}{'-covered' * bool(PROBES)}.pyc"
    )

    def _own(self, path: str) -> str:
        return path.removesuffix(".pyc") + self.kept if path.endswith(".pyc") else path

    def get_data(self, path: str) -> bytes:
        return super().get_data(self._own(path))

    def set_data(self, path: str, data: Any, **options: Any) -> None:  # noqa: ANN401 - modes
        super().set_data(self._own(path), data, **options)

    def source_to_code(self, data: Any, path: Any, **options: Any) -> CodeType:  # noqa: ANN401
        tree = ast.parse(data, path)
        if PROBES:
            tree = PROBES.marked(tree)
        _Decorate().visit(tree)
        return super().source_to_code(tree, path, **options)  # pyright: ignore[reportArgumentType]

    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return PROBES.put(code) if PROBES and code else code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[NAME] = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Check whatever of the package is imported from now on."""
    if PACKAGE in sys.modules:
        msg = f"{PACKAGE} is imported already, so that its functions would go unchecked"
        raise RuntimeError(msg)
    sys.meta_path.insert(0, _Finder())

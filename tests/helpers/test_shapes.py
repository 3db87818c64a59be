"""The checks of types and shapes that all tests run under are in force, and see what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest
import shapes  # pyright: ignore[reportMissingImports]
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from triskel.numerics import tensors

Square = Float[Tensor, "side side"]


def test_functions_of_the_package_refuse_other_types_and_shapes() -> None:
    assert tensors.runs(torch.tensor([True, False, False])) == [0, 1]
    with pytest.raises(BeartypeCallHintViolation):
        tensors.runs(torch.tensor([[True, False]]))
    with pytest.raises(BeartypeCallHintViolation):
        tensors.runs(torch.tensor([1.0]))


@pytest.mark.parametrize("size", [2, 3])
def test_a_letter_means_one_size_in_a_signature(size: int) -> None:
    @shapes.checked
    def joined(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.cat([a, b])[: size * int(a[0])]

    one, zero = torch.ones(size), torch.zeros(size)
    assert torch.equal(joined(one, zero), one)
    with pytest.raises(BeartypeCallHintViolation):
        joined(one, torch.zeros(size + 1))
    with pytest.raises(BeartypeCallHintViolation):  # what it gives
        joined(zero, one)


def test_a_letter_means_another_size_in_a_call_within() -> None:
    @shapes.checked
    def outer(x: Square, inner: Tensor) -> Square:
        within(inner)
        return x[:, : len(inner)]

    @shapes.checked
    def within(x: Square) -> int:
        return len(x)

    assert outer(torch.ones(2, 2), torch.ones(3, 3)).shape == (2, 2)
    with pytest.raises(BeartypeCallHintViolation):  # the letter still means 3
        outer(torch.ones(3, 3), torch.ones(2, 2))
    with pytest.raises(BeartypeCallHintViolation):
        outer(torch.ones(2, 2), torch.ones(2, 3))


def test_a_size_may_be_that_of_an_argument() -> None:
    @shapes.checked
    def first(x: Float[Tensor, " all"], n: int) -> Float[Tensor, " {n}"]:
        return x[:n]

    assert len(first(torch.ones(3), 2)) == 2
    with pytest.raises(TypeCheckError):
        first(torch.ones(3), 4)


def test_a_name_that_only_a_type_checker_knows_is_no_fault() -> None:
    def same(x: object, size: int) -> object:
        return size if x is None else x

    same.__annotations__["x"] = same.__annotations__["return"] = "Unknown"
    same = shapes.checked(same)

    assert same(None, 2) == 2
    with pytest.raises(TypeCheckError):
        same(None, "2")  # pyright: ignore[reportArgumentType]


def test_a_dataclass_checks_its_fields() -> None:
    @shapes.checked
    @dataclass(frozen=True)
    class Pair:
        a: Float[Tensor, " n"]
        b: Float[Tensor, " n"]
        name: str = ""

    assert Pair(torch.ones(2), torch.ones(2)).name == ""
    with pytest.raises(BeartypeCallHintViolation):
        Pair(torch.ones(2), torch.ones(3))
    with pytest.raises(BeartypeCallHintViolation):
        Pair(torch.ones(2), torch.ones(2), 1)  # pyright: ignore[reportArgumentType]


def test_a_generator_checks_what_it_takes_when_it_is_called() -> None:
    @shapes.checked
    def rows(x: Float[Tensor, "n n"]) -> Iterator[Tensor]:
        yield from x

    assert len(list(rows(torch.ones(2, 2)))) == 2
    with pytest.raises(TypeCheckError):
        rows(torch.ones(2, 3))


def test_an_int_is_a_float_and_a_method_may_return_itself() -> None:
    class One:
        @shapes.checked
        def me(self, weight: float) -> Self:
            del weight
            return self

    assert isinstance(One().me(1), One)
    with pytest.raises(BeartypeCallHintViolation):
        One().me("1")  # pyright: ignore[reportArgumentType]

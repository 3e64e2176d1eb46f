"""Shapes of inner functions are checked by their own annotations, however often they are made."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shapes import check_once


def made_for(size: int):
    @jaxtyped(typechecker=check_once)
    def inner(x: Float[Tensor, str(size)], returned: Tensor) -> Float[Tensor, f"{size} 1"]:
        return returned

    return inner


@pytest.mark.parametrize("size", [2, 3])
def test_each_signature_keeps_a_checker_of_its_own(size):
    right, wrong = torch.zeros(size, 1), torch.zeros(size + 1, 1)
    for _ in range(2):
        assert made_for(size)(right[:, 0], right) is right
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            made_for(size)(wrong[:, 0], right)
        with pytest.raises(TypeCheckError, match="checking the return value"):
            made_for(size)(right[:, 0], wrong)

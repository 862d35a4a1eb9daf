import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test that draws without a generator draws the same numbers every time."""
    torch.manual_seed(0)

"""Compiled network calls: one for all sizes, none for few rows or gradients, given up where they fail."""

import shutil

import pytest
import torch
from torch import Tensor

from stepdrop_rl.models.captured import Output
from stepdrop_rl.models.compiled import FEWEST, Compiled
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import load_model

from .conftest import SHAPE, denoiser_of, network

FEATURES = [(), ("middle", "decoder")]


@pytest.fixture(scope="module")
def plain() -> NetworkDenoiser:
    return denoiser_of(network(), "v_prediction")


def batch(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, *SHAPE, generator=generator), torch.linspace(0, 999, rows, dtype=torch.float64)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_it_says_what_the_network_says_at_every_size(plain: NetworkDenoiser) -> None:
    compiled = denoiser_of(network(), "v_prediction", compiled=True)
    for rows in (FEWEST, 2 * FEWEST + 3, FEWEST - 1):
        x, t = batch(rows)
        expected, seen = plain(x, t, features=FEATURES[-1])
        said, pooled = compiled(x, t, features=FEATURES[-1])
        torch.testing.assert_close(said, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(pooled, seen, rtol=0, atol=1e-5)
    assert compiled._call._works  # type: ignore[attr-defined]


@pytest.mark.parametrize("features", FEATURES)
def test_one_compilation_serves_all_sizes(plain: NetworkDenoiser, features: tuple[str, ...]) -> None:
    plain(*batch(2), features=features)  # what watches is made before calls are compiled
    traced = torch._dynamo.testing.CompileCounter()
    compiled = Compiled(plain._network, backend=traced)  # type: ignore[arg-type]
    for rows in (100, FEWEST, 257, 128):
        x, t = batch(rows)
        for one, other in zip(compiled(x, t, features), plain._network(x, t, features), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert traced.frame_count == 1


def test_gradients_and_few_rows_go_through_the_call_itself() -> None:
    made: list[int] = []

    def call(x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        made.append(len(x))
        return x.square(), None

    compiled = Compiled(call, backend="eager")
    compiled._compiled = lambda x, t, features: pytest.fail("compiled")  # type: ignore[assignment]
    x, t = batch(FEWEST)
    compiled(x.requires_grad_(), t, ())[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())
    compiled(*batch(FEWEST - 1), ())
    assert made == [FEWEST, FEWEST - 1]


def test_what_cannot_be_compiled_is_called(plain: NetworkDenoiser) -> None:
    def refuse(x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        raise RuntimeError("no C++ compiler found")

    compiled = Compiled(plain._network, backend="eager")
    compiled._compiled = refuse
    x, t = batch(FEWEST)
    with pytest.warns(UserWarning, match="not compiled: no C\\+\\+ compiler found"):
        first, _ = compiled(x, t, ())
    second, _ = compiled(x, t, ())
    assert torch.equal(first, plain._network(x, t, ())[0])
    assert torch.equal(first, second)


def test_a_model_is_compiled_on_request() -> None:
    assert isinstance(load_model("digits", compiled=True).denoiser._call, Compiled)
    assert not isinstance(load_model("digits").denoiser._call, Compiled)

"""Compiled network calls: one for all sizes, none for few rows or gradients, given up where they fail."""

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

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
    assert Compiled.works


@pytest.mark.parametrize("features", FEATURES)
def test_one_compilation_serves_all_sizes(plain: NetworkDenoiser, features: tuple[str, ...]) -> None:
    plain(*batch(2), features=features)  # what watches is made before calls are compiled
    traced = CompileCounter()
    compiled = Compiled(plain._network, backend=traced)  # type: ignore[arg-type]
    for rows in (100, FEWEST, 257, 128):
        x, t = batch(rows)
        for one, other in zip(compiled(x, t, features), plain._network(x, t, features), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        compiled(x, t.float(), features)
    assert traced.frame_count == 1


def test_other_models_of_the_same_kind_are_not_compiled_again() -> None:
    traced = CompileCounter()
    for seed in range(3):
        model = denoiser_of(network(seed=seed))
        model(*batch(2), features=FEATURES[-1])
        compiled = Compiled(model._network, backend=traced)  # type: ignore[arg-type]
        x, t = batch(FEWEST)
        said, shown = compiled(x, t, FEATURES[-1])
        expected, pooled = model._network(x, t, FEATURES[-1])
        torch.testing.assert_close((said, shown), (expected, pooled), rtol=0, atol=1e-5)
    assert traced.frame_count == 1


def test_gradients_and_few_rows_go_through_the_call_itself() -> None:
    made: list[int] = []

    def call(x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        made.append(len(x))
        return x.square() * t.reshape(-1, 1, 1, 1), None

    compiled = Compiled(call)
    compiled._made = lambda *_: pytest.fail("compiled")  # type: ignore[method-assign]
    x, t = batch(FEWEST)
    for wanted, other in ((x, t), (t, x)):
        wanted.requires_grad_()
        compiled(x, t, ())[0].sum().backward()
        assert wanted.grad is not None
        assert float(wanted.grad.abs().sum()) > 0
        wanted.requires_grad_(False)
        assert other.requires_grad is False
    compiled(*batch(FEWEST - 1), ())
    assert made == [FEWEST, FEWEST, FEWEST - 1]


def test_what_cannot_be_compiled_is_called(plain: NetworkDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "works", True)
    compiled = Compiled(plain._network, backend="no_such_backend")
    x, t = batch(FEWEST)
    with pytest.warns(UserWarning, match="not compiled: .*no_such_backend"):
        first, _ = compiled(x, t, ())
    second, _ = compiled(x, t, ())
    assert torch.equal(first, plain._network(x, t, ())[0])
    assert torch.equal(first, second)


def test_features_follow_weights_and_mode_and_keep_no_graph() -> None:
    net = network()
    model = denoiser_of(net)
    x, t = batch(4)
    with torch.no_grad():
        before = model(x, t, features=("middle",))[1]
        for weight in net.parameters():
            weight.mul_(1.1)
        after = model(x, t, features=("middle",))[1]
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)
    watched = model._watching(("middle",))
    net.train()
    model(x.requires_grad_(), t, features=("middle",))
    assert watched.network.training
    assert all(block.shown is None for block in watched._blocks)


def test_a_model_is_compiled_on_request() -> None:
    assert isinstance(load_model("digits", compiled=True).denoiser._call, Compiled)
    assert not isinstance(load_model("digits").denoiser._call, Compiled)

"""Recorded network calls: padded, kept per shape, left out for gradients, and given up where they fail."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.captured import Captured, Output, Replay, padded_size
from stepdrop_rl.models.denoiser import NetworkDenoiser

from .conftest import SHAPE, denoiser_of, network


class Tape:
    """Records as a CUDA graph does: what runs is fixed, and writes where the first run wrote."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replays = 0

    def __call__(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        output, pooled = call()
        self.recorded.append(len(output))

        def replay() -> None:
            self.replays += 1
            again, seen = call()
            output.copy_(again)
            if pooled is not None and seen is not None:
                pooled.copy_(seen)

        return (output, pooled), replay


@pytest.fixture(scope="module")
def plain() -> NetworkDenoiser:
    return denoiser_of(network(), "v_prediction")


def batch(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, *SHAPE), torch.rand(rows, dtype=torch.float64) * 999


def test_sizes_waste_a_third_at_most() -> None:
    assert [padded_size(rows) for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 129, 193, 256)] == [
        *(1, 2, 3, 4, 6, 6, 8, 8, 12, 16, 192, 256, 256)
    ]
    for rows in range(1, 2000):
        assert rows <= padded_size(rows) <= max(rows * 1.5, 1)


def test_it_says_what_the_network_says_and_records_once_a_shape(plain: NetworkDenoiser) -> None:
    tape = Tape()
    captured = Captured(plain._network, tape)
    kept = []
    for rows in (5, 6, 5, 2):
        for names in ((), ("middle", "decoder")):
            x, t = batch(rows)
            output, pooled = captured(x, t, names)
            expected, seen = plain._network(x, t, names)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
            assert (pooled is None) == (not names)
            if pooled is not None and seen is not None:
                torch.testing.assert_close(pooled, seen, rtol=0, atol=1e-5)
            kept.append((output, output.clone()))
    assert tape.recorded == [6, 6, 2, 2]
    assert tape.replays == 8
    assert all(torch.equal(output, then) for output, then in kept)  # later replays write elsewhere


def test_gradients_go_through_the_call_itself(plain: NetworkDenoiser) -> None:
    tape = Tape()
    captured = Captured(plain._network, tape)
    x, t = batch(2)
    x.requires_grad_()
    captured(x, t, ())[0].square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert not tape.recorded


def test_what_cannot_be_recorded_is_called(plain: NetworkDenoiser) -> None:
    def refuse(call: Callable[[], Output]) -> tuple[Output, Replay]:
        raise RuntimeError("operation not permitted when stream is capturing")

    captured = Captured(plain._network, refuse)
    x, t = batch(3)
    with pytest.warns(UserWarning, match="not captured as CUDA graphs: operation not permitted"):
        first, _ = captured(x, t, ())
    second, _ = captured(x, t, ())
    assert torch.equal(first, plain._network(x, t, ())[0])
    assert torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_cuda_graphs_say_what_the_network_says(autocast: torch.dtype | None) -> None:
    plain, captured = (
        NetworkDenoiser(
            network().cuda(),
            NoiseSchedule("cosine", 1000, "cuda"),
            prediction="epsilon",
            shape=SHAPE,
            autocast=autocast,
            capture=capture,
        )
        for capture in (False, True)
    )
    for rows in (16, 11, 16, 3):
        x, t = (value.cuda() for value in batch(rows))
        for names in ((), ("middle",)):
            one, other = plain(x, t, features=names), captured(x, t, features=names)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 if autocast is None else 3e-2)
    assert captured._call._works  # type: ignore[attr-defined]

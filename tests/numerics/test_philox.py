"""Philox4x32-10 against Random123's published vectors, and what counter-based numbers promise."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.philox import MAX_SEED, Role, Stream, normal, philox4x32, uniform

FF = 0xFFFFFFFF

# Random123, tests/kat_vectors: "philox4x32 10", counter, key, output. The last one: digits of pi.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((FF, FF, FF, FF), (FF, FF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def word(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int64)


def words(counter: tuple[int, ...], key: tuple[int, ...]) -> str:
    c0, c1, c2, c3 = (word(v) for v in counter)
    return " ".join(f"{int(out):08x}" for out in philox4x32((c0, c1, c2, c3), (word(key[0]), word(key[1]))))


def python_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> str:
    """The paper's figure 2 in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & FF, (p0 >> 32) ^ c[3] ^ k[1], p0 & FF]
        k = [(k[0] + 0x9E3779B9) & FF, (k[1] + 0xBB67AE85) & FF]
    return " ".join(f"{v:08x}" for v in c)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: str) -> None:
    assert words(counter, key) == expected


def test_agrees_with_unbounded_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    for row in torch.randint(0, 1 << 32, (40, 6), generator=generator).tolist():
        assert words(tuple(row[:4]), tuple(row[4:])) == python_philox(tuple(row[:4]), tuple(row[4:]))


def draw(
    seed: Tensor | int = 0,
    role: Role = Role.EVALUATION,
    stream: Stream = Stream.JUMP,
    image: Tensor | int = 0,
    time: Tensor | float | None = None,
    num: int = 8,
) -> Tensor:
    image = torch.as_tensor(image).reshape(-1)
    if time is not None:
        time = torch.as_tensor(time, dtype=torch.float64).expand(len(image))
    return uniform(num, seed=seed, role=role, stream=stream, image=image, time=time)


def test_words_are_laid_out_as_documented() -> None:
    # The layout is a promise: a change of it would change every published number.
    image, t, seed = 5_000_000_123, 17.25, 0x9ABCDEF0
    expected = python_philox(
        (1, image & FF, int(t * 65536), (image >> 32) * 16 + Stream.DECISION), (seed, Role.VALIDATION)
    )
    u = draw(seed, Role.VALIDATION, Stream.DECISION, image, t, num=8)[0, 4:]  # block 1: words 4 to 7
    assert " ".join(f"{int(v):08x}" for v in u * 2.0**32) == expected


def test_uniform_lies_in_the_half_open_unit_interval() -> None:
    u = draw(seed=3, image=torch.arange(2000), num=100)
    assert u.dtype == torch.float64
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    # Kolmogorov-Smirnov over 200,000 numbers: D·√n < 1.95 holds with probability 0.999.
    n = u.numel()
    distance = (u.flatten().sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) * math.sqrt(n) < 1.95


def test_moments_of_normal_numbers() -> None:
    z = normal((3, 16, 16), seed=1, role=Role.VALIDATION, stream=Stream.INITIAL, image=torch.arange(1000))
    assert z.dtype == torch.float32
    z = z.double().flatten()
    n = len(z)
    # Standard errors of the k-th sample moments of N(0, 1): √((E z^2k − (E z^k)²)/n); bounds at 4 of them.
    for power, mean, variance in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]:
        assert abs(float((z**power).mean()) - mean) < 4 * math.sqrt(variance / n), power
    tail = float((z.abs() > 3).double().mean())
    p = math.erfc(3 / math.sqrt(2))
    assert abs(tail - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_neighbouring_numbers_are_uncorrelated() -> None:
    z = normal((64,), seed=1, role=Role.VALIDATION, stream=Stream.JUMP, image=torch.arange(4000)).double()
    for a, b in [(z[:, :-1], z[:, 1:]), (z[:-1], z[1:])]:  # within an image (also Box-Muller pairs), between
        for f in (lambda v: v, lambda v: v**2 - 1):
            product = (f(a) * f(b)).flatten()
            assert abs(float(product.mean())) < 4.5 * float(product.std()) / math.sqrt(len(product))


def test_order_and_size_of_the_batch_change_nothing() -> None:
    images = torch.arange(37)
    whole = draw(seed=7, image=images, time=torch.arange(37) * 3.5)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw(seed=7, image=order, time=order * 3.5), whole[order], rtol=0, atol=0)
    alone = torch.cat([draw(seed=7, image=i, time=i * 3.5) for i in range(37)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=0)


def test_normal_does_not_depend_on_its_batch() -> None:
    def z(images: Tensor) -> Tensor:
        return normal((1, 3, 3), seed=7, role=Role.EVALUATION, stream=Stream.INITIAL, image=images)

    whole = z(torch.arange(37))
    torch.testing.assert_close(torch.cat([z(torch.tensor([i])) for i in range(37)]), whole, rtol=0, atol=0)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one() -> None:
    for num in (1, 3, 4, 5):
        torch.testing.assert_close(draw(num=num), draw(num=8)[:, :num], rtol=0, atol=0)


def test_one_seed_per_row() -> None:
    seeds = torch.tensor([0, 1, 2**32 - 1])
    together = draw(seed=seeds, image=torch.full((3,), 9))
    alone = torch.cat([draw(seed=int(s), image=9) for s in seeds])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_everything_that_a_draw_names_changes_its_numbers() -> None:
    named: dict[str, list[Any]] = {
        "seed": [0, 1, 2, MAX_SEED],
        "role": list(Role),
        "stream": list(Stream),
        "image": [0, 1, 2**31, 2**32 - 1, 2**32, 2**40],
        "time": [None, 1 / 65536, 0.5, 1.0, 999.0],
    }
    draws: dict[tuple[float, ...], list[tuple[str, Any]]] = {}
    for name, values in named.items():
        for value in values:
            key = tuple(draw(**{name: value}).flatten().tolist())
            draws.setdefault(key, []).append((name, value))
    default = draws.pop(tuple(draw().flatten().tolist()))
    # Every name's default is among its values, and they are the only draws that agree.
    expected = [("seed", 0), ("role", Role.EVALUATION), ("stream", Stream.JUMP), ("image", 0), ("time", None)]
    assert sorted(default, key=str) == sorted(expected, key=str)
    assert all(len(same) == 1 for same in draws.values())


def test_roles_streams_seeds_and_images_do_not_alias() -> None:
    # Small numbers everywhere: a packing that adds instead of separating would collide here.
    seen = {
        tuple(draw(s, r, st, i, t, num=4).flatten().tolist())
        for s, r, st, i, t in itertools.product(range(3), Role, Stream, (0, 1, 2**32), (0.0, 1.0, 16.0))
    }
    assert len(seen) == 3 * len(Role) * len(Stream) * 3 * 3


def test_a_draw_repeats() -> None:
    torch.testing.assert_close(
        draw(seed=5, image=3, time=2.5), draw(seed=5, image=3, time=2.5), rtol=0, atol=0
    )

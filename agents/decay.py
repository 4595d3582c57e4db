"""A learning rate that falls over a run."""


class LinearDecay:
    """Falls linearly over the declared run, from ``start`` to ``final``·start."""

    def __init__(self, start: float, final: float) -> None:
        self.start = start
        self.final = final

    def __call__(self, progress_remaining: float) -> float:
        return self.start * (self.final + (1 - self.final) * progress_remaining)

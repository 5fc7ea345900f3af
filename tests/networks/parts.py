"""Networks that a test writes down in one line: layers around a function of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Between(nn.Module):
    """``b(op(a(x)))``."""

    def __init__(self, a: nn.Module, op: Callable[[Tensor], Tensor], b: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.op = a, b, op

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.op(self.a(x)))


class After(nn.Module):
    """``op(self, x)``, with the modules and parameters given by name."""

    def __init__(self, op: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.op = op

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(self, *args, **kwargs)

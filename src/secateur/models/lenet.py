"""The two LeNets of the pruning literature."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.options import check_counts


class LeNet300100(nn.Module):
    """784-300-100-10 with ReLU and biases, on 28 x 28 images: 266,610 parameters."""

    def __init__(self, classes: int = 10, hidden: tuple[int, int] = (300, 100)) -> None:
        super().__init__()
        if not isinstance(hidden, (list, tuple)) or len(hidden) != 2:
            raise ModelError(f"hidden is {hidden!r}; it is the two layers' neurons, like [300, 100]")
        check_counts(classes=classes, **{f"hidden[{i}]": count for i, count in enumerate(hidden)})
        first, second = hidden
        self.fc1 = nn.Linear(784, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.flatten(1)).relu()
        return self.fc3(self.fc2(x).relu())


class LeNet5(nn.Module):
    """conv 20 (5 x 5) - pool - conv 50 (5 x 5) - pool - 500 - 10, on 28 x 28: 431,080 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        check_counts(classes=classes)
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        return self.fc2(self.fc1(x.flatten(1)).relu())


def lenet_300_100(classes: int = 10, hidden: tuple[int, int] = (300, 100)) -> nn.Module:
    """784-300-100-10, ReLU, biases: 266,610 parameters (LeCun et al., 1998; S1's network)."""
    return LeNet300100(classes, hidden)


def lenet_5(classes: int = 10) -> nn.Module:
    """The Caffe LeNet-5, 20-50-500-10: 431,080 parameters (the one that Han et al. compress)."""
    return LeNet5(classes)

"""S5's convolutional network."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.models.options import check_counts, check_flag, check_number


class ConvNet25(nn.Module):
    """conv 32 (same) - conv 32 - pool - conv 64 (same) - conv 64 - pool - 512 - classes, on
    25 x 25 x 3 images; dropout 0.25 after each pool and 0.5 before the classifier. ``batch_norm``: one
    after each conv."""

    def __init__(self, classes: int = 5, dropout: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        check_counts(classes=classes)
        check_number("dropout", dropout, 0, 2)
        check_flag("batch_norm", batch_norm)
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3)
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.norm1, self.norm2 = norm(32), norm(32)
        self.norm3, self.norm4 = norm(64), norm(64)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 4 * 4, 512)
        self.fc2 = nn.Linear(512, classes)
        self.drop_conv = nn.Dropout(0.25 * dropout)
        self.drop_fc = nn.Dropout(0.5 * dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        x = self.drop_conv(self.pool(x))
        x = self.norm3(self.conv3(x)).relu()
        x = self.norm4(self.conv4(x)).relu()
        x = self.drop_conv(self.pool(x))
        return self.fc2(self.drop_fc(self.fc1(x.flatten(1)).relu()))


def convnet_25(classes: int = 5, dropout: float = 1.0, batch_norm: bool = False) -> nn.Module:
    """Four convs and two dense layers on 25 x 25 x 3: 592,933 parameters (S5's network)."""
    return ConvNet25(classes, dropout, batch_norm)

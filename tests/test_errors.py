"""Messages are fit for a terminal, whatever a file named."""

import pytest

from secateur.errors import StorageError


def test_a_short_message_is_as_it_is():
    assert str(StorageError("out: no such file\nsecond line")) == "out: no such file\nsecond line"


@pytest.mark.parametrize("character", ["x", "\x00", "\u202e", "\U000e0001"])
def test_a_long_message_is_cut_however_its_characters_are_written(character):
    text = str(StorageError(character * 100_000))
    assert len(text) < 3_100
    assert text.isprintable()
    assert text.endswith("(cut: a message of 100,000 characters)")

"""Numbers as people read them."""

from __future__ import annotations

import pytest

from drumline.wording import counted, size_text


def test_one_is_singular_and_all_else_plural() -> None:
    assert [counted(number, "file") for number in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert counted(2, "directory", "directories") == "2 directories"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (3_440_000, "3.4 MB"),
        (999_999_999, "1.0 GB"),
        (1_234_000_000_000_000, "1,234.0 TB"),
    ],
)
def test_sizes_have_the_unit_that_suits_them(size: int, text: str) -> None:
    assert size_text(size) == text

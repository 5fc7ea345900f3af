"""Files of every kind that is read, mutated: each is read, or refused in one typed line.

About 10 seconds over all formats; SECATEUR_FUZZ_SECONDS says how many, benchmarks/fuzz.py runs for an hour.
"""

from __future__ import annotations

import os

import pytest
from campaign import FORMATS, Campaign, lines_of, table_of

SECONDS = float(os.environ.get("SECATEUR_FUZZ_SECONDS", "10"))


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    found = Campaign(tmp_path_factory.mktemp("fuzz"), FORMATS, SECONDS, each=1 << 40).run()
    print(table_of(found))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_mutant_is_read_or_refused_in_one_typed_line(counts, name):
    assert not lines_of(counts, [name])
    assert counts[name].refused > 5  # the readers were reached, and so were their checks
    assert counts[name].accepted + counts[name].refused == counts[name].inputs

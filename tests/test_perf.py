"`make perf` works, and aligning from file to file takes no more memory for more rows. No time is asserted."
import subprocess
import sys
from pathlib import Path

import pytest

from realign.cost import align, in_process, make

sys.path.insert(0, str(Path(__file__).parent))
import perf


def test_prints_one_row_for_each_size():
    done = subprocess.run([sys.executable, perf.__file__, '1500', '2000'], capture_output=True, text=True, check=True)
    head, *rows, copy, _ = done.stdout.splitlines()
    assert all(column in head for column in perf.COLUMNS)
    assert [row.split()[0] for row in rows] == ['1,500', '2,000']
    assert all(len(row.split()) == len(perf.COLUMNS) for row in rows)
    assert 'GB/s' in copy


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path):
    peaks = {}
    for rows in (20_000, 100_000):
        folder = tmp_path/str(rows)
        in_process(make, folder, rows)
        peaks[rows] = in_process(align, folder, rows)['peak MB']
    assert peaks[100_000] - peaks[20_000] < 60, peaks # the texts alone are 205 MB larger; the same run twice differs by up to 20

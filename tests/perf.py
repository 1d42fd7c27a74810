"""How fast embeddings are aligned from file to file, against what the machine could do at best. `make perf`, or `python tests/perf.py 2000`.

For each number of rows, 1280-dimensional float16 texts and images are written to a folder in .cache, and a fresh process fits ReAlign on the two
folders and writes the aligned texts; what is timed stands in `realign.cost`. Bytes moved: the texts are read three times (anchors, drift, output), the
images once, the output is written once. The floor is a process that does just these reads and writes and no arithmetic. The baseline, for at most
100,000 rows, is the published procedure on whole arrays in float64.
"""
import sys
import tempfile
from pathlib import Path

from realign.cost import PASSES, D, align, floor, in_process, make, plain

BASELINE_ROWS = 100_000
CACHE = Path(__file__).resolve().parents[1]/'.cache'
COLUMNS = {'rows': '{:,}', 'fit s': '{:.2f}', 'apply s': '{:.2f}', 'total s': '{:.2f}', 'GB/s': '{:.2f}', 'floor s': '{:.2f}', 'of floor': '{:.0%}',
           'peak MB': '{:.0f}', 'numpy s': '{:.2f}', 'numpy MB': '{:.0f}', 'ratio': '{:.1f}'}


def measure(rows):
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='perf-', dir=CACHE) as folder:
        row = {'rows': rows}
        for step in (make, floor, align, plain)[:4 if rows <= BASELINE_ROWS else 3]: row |= in_process(step, Path(folder), rows)
    row['total s'] = row['fit s'] + row['apply s']
    row['GB/s'] = PASSES*rows*D*2/row['total s']/1e9
    row['of floor'] = row['floor s']/row['total s']
    if 'numpy s' in row: row['ratio'] = row['numpy s']/row['total s']
    return row


def main(sizes):
    print('  '.join(f'{c:>9}' for c in COLUMNS), flush=True)
    copies = []
    for rows in sizes:
        row = measure(rows)
        copies.append(row['copy GB/s'])
        print('  '.join(f'{form.format(row[c]) if c in row else "":>9}' for c, form in COLUMNS.items()), flush=True)
    print(f'copy in memory: {max(copies):.1f} GB/s, read plus written')
    print(f'GB/s and floor: texts read 3 times, images read once, output written once, float16 × {D}')


if __name__ == '__main__': main([int(n) for n in sys.argv[1:] or (100_000, 300_000, 1_000_000)])

"""How fast embeddings are aligned from file to file, against what the machine could do at best. `make perf`, or `python tests/perf.py 2000`.

For each number of rows, 1280-dimensional float16 texts and images are written to a folder in .cache, and a fresh process fits ReAlign on the two
folders and writes the aligned texts. Bytes moved: the texts are read three times (anchors, drift, output), the images once, the output is written
once. The floor is a process that does just these reads and writes and no arithmetic. The baseline, for at most 100,000 rows, is the published
procedure on whole arrays in float64.
"""
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

D = 1280
BASELINE_ROWS = 100_000
CACHE = Path(__file__).resolve().parents[1]/'.cache'
COLUMNS = {'rows': '{:,}', 'fit s': '{:.2f}', 'apply s': '{:.2f}', 'total s': '{:.2f}', 'GB/s': '{:.2f}', 'floor s': '{:.2f}', 'of floor': '{:.0%}',
           'peak MB': '{:.0f}', 'numpy s': '{:.2f}', 'numpy MB': '{:.0f}', 'ratio': '{:.1f}'}


def peak_mb():
    "Largest resident memory of this process. `ru_maxrss` starts from the parent's, so Linux is asked for the process's own mark."
    try: status = Path('/proc/self/status').read_text()
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)
    return next(int(line.split()[1])/2**10 for line in status.splitlines() if line.startswith('VmHWM'))


# What the child processes do; each prints one JSON object

def make(folder, rows):
    "Two unpaired cones, written in blocks through the library's own writer."
    import numpy as np

    from realign.shards import write_shards
    for seed, (name, spread) in enumerate({'text_emb': .7, 'img_emb': 1.}.items()):
        rng = np.random.default_rng(seed)
        centre = rng.standard_normal(D, dtype=np.float32)
        blocks = (rng.standard_normal((min(8192, rows - i), D), dtype=np.float32)*spread + centre for i in range(0, rows, 8192))
        write_shards(folder, blocks, name=name, dtype='float16')
    return {}


def align(folder, rows):
    "The library, from file to file."
    import numpy as np

    from realign.align import ReAlign
    from realign.moments import normalize
    from realign.shards import open_embeddings, write_shards
    normalize(np.ones(2))   # imports torch where it is installed
    began = perf_counter()
    text, image = open_embeddings(folder, 'text'), open_embeddings(folder, 'img')
    aligner = ReAlign().fit(text, image)
    fitted = perf_counter()
    write_shards(folder/'aligned', lambda start: aligner.stream(text, start, 'float16'))
    return {'fit s': fitted - began, 'apply s': perf_counter() - fitted, 'peak MB': peak_mb()}


def floor(folder, rows):
    "The same reads and writes without arithmetic, and what one large copy in memory reaches."
    import os

    import numpy as np
    buffer, began = bytearray(2**20), perf_counter()

    def read(name):
        for path in sorted((folder/name).glob('*.npy')):
            with open(path, 'rb', buffering=0) as f:
                while n := f.readinto(buffer): yield memoryview(buffer)[:n]

    for name in ('text_emb', 'img_emb', 'text_emb'):
        for _ in read(name): pass
    with open(folder/'copy', 'wb', buffering=0) as f:
        for piece in read('text_emb'): f.write(piece)
        os.fsync(f.fileno())
    seconds = perf_counter() - began
    source = np.ones(2**28, np.uint8)
    target = source.copy()
    times = []
    for _ in range(5):
        began = perf_counter()
        np.copyto(target, source)
        times.append(perf_counter() - began)
    return {'floor s': seconds, 'copy GB/s': 2*source.nbytes/min(times)/1e9}


def plain(folder, rows):
    "The published three steps on whole arrays in float64."
    import numpy as np
    began = perf_counter()
    unit = lambda z: z/np.linalg.norm(z, axis=1, keepdims=True)
    y, x = (unit(np.concatenate([np.load(f) for f in sorted((folder/name).glob('*.npy'))]).astype(np.float64)) for name in ('text_emb', 'img_emb'))
    mu_y, mu_x = y.mean(0), x.mean(0)
    s = np.sqrt(((x - mu_x)**2).sum(1).mean()/(((y - mu_y)**2).sum(1).mean() + 1e-10))
    z = unit(mu_x + s*(y - mu_y))
    z = unit(z - z.mean(0) + mu_x)
    np.save(folder/'plain.npy', z.astype(np.float16))
    seconds, done = perf_counter() - began, 0
    for path in sorted((folder/'aligned/text_emb').glob('*.npy')):
        ours = np.load(path)
        if not np.allclose(ours, z[done:done + len(ours)], rtol=0, atol=1e-3): raise ValueError(f'{path.name} differs from the plain implementation')
        done += len(ours)
    return {'numpy s': seconds, 'numpy MB': peak_mb()}


def child(step, folder, rows):
    done = subprocess.run([sys.executable, __file__, step, str(folder), str(rows)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# The table

def measure(rows):
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='perf-', dir=CACHE) as folder:
        row = {'rows': rows}
        for step in ('make', 'floor', 'align'): row |= child(step, folder, rows)
        if rows <= BASELINE_ROWS: row |= child('plain', folder, rows)
    row['total s'] = row['fit s'] + row['apply s']
    row['GB/s'] = (3 + 1 + 1)*rows*D*2/row['total s']/1e9
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


if __name__ == '__main__':
    steps = {f.__name__: f for f in (make, align, floor, plain)}
    first, *rest = sys.argv[1:] or ['100000', '300000', '1000000']
    if first in steps: print(json.dumps(steps[first](Path(rest[0]), int(rest[1]))))
    else: main([int(n) for n in (first, *rest)])

"The realign command as a user runs it: a process, its output, its exit status, what it leaves behind."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from realign.align import load
from realign.shards import open_embeddings, write_shards

REALIGN = [str(Path(sys.executable).with_name('realign'))]


def run(*args, **kwargs): return subprocess.run([*REALIGN, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def refused(result, *words):
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count('\n') == 1 and 'Traceback' not in result.stderr
    for w in words: assert w in result.stderr, result.stderr


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    for name, mean in (('text', 1), ('image', -1)):
        (tmp_path/name).mkdir()
        for i in range(3): np.save(tmp_path/name/f'{i:04d}.npy', (rng.standard_normal((400, 24)) + mean).astype(np.float16))
    return tmp_path


def shards(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def test_fit_apply_measure(world):
    fit = run('fit', world/'text', world/'image', '--out', world/'a.safetensors')
    assert fit.returncode == 0 and 'text  (source, moves): 1,200 × 24 float16 in ' in fit.stdout and 'image (target, stays)' in fit.stdout
    assert run('apply', world/'a.safetensors', world/'text', world/'out', '--rows-per-shard', 500).returncode == 0
    before, after = (run('measure', world/t, world/'image').stdout for t in ('text', 'out'))
    gap = lambda out: float(next(row.split()[1] for row in out.splitlines() if row.startswith('gap')))
    assert gap(after) < .01 < gap(before)


def test_metadata_stays_with_its_row(world):
    "Blocks are read ahead of the aligned ones; each must meet its own captions again, from the start and after a resume."
    z = np.random.default_rng(1).standard_normal((7000, 24)).astype(np.float32)
    source = [(z[at:at + 700], {'id': [f't{i}' for i in range(at, at + 700)]}) for at in range(0, 7000, 700)]
    write_shards(world/'texts', source, rows_per_shard=3000)
    assert run('fit', world/'texts', world/'image', '--out', world/'a.safetensors').returncode == 0
    assert run('apply', world/'a.safetensors', world/'texts', world/'out', '--rows-per-shard', 3000).returncode == 0
    out = open_embeddings(world/'out')
    assert np.array_equal(out.read(), load(world/'a.safetensors').transform(z)) and list(out.ids()) == [f't{i}' for i in range(7000)]
    before = shards(world/'out')
    manifest = world/'out/text_emb/manifest.json'
    for f in (world/'out/text_emb/text_emb_0001.npy', world/'out/text_emb/text_emb_0002.npy'): f.unlink()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {'rows': None}))   # as a killed run leaves it
    assert run('apply', world/'a.safetensors', world/'texts', world/'out', '--rows-per-shard', 3000).returncode == 0
    assert shards(world/'out').keys() == before.keys() and list(open_embeddings(world/'out').ids()) == [f't{i}' for i in range(7000)]
    assert all(v == before[k] for k, v in shards(world/'out').items() if k.suffix != '.json')


@pytest.mark.parametrize('format', ['parquet', 'safetensors'])
def test_embeddings_of_another_name(world, format):
    z = {side: np.load(world/side/'0000.npy').astype(np.float32) for side in ('text', 'image')}
    for side, rows in z.items():
        if format == 'parquet': pq.write_table(pa.table({'vector': list(rows), 'embedding': list(rows[:, :3])}), world/f'{side}.parquet')
        else: save_file({'vector': rows, 'other': rows[:, :3].copy()}, world/f'{side}.safetensors')
    text, image = (world/f'{side}.{format}' for side in z)
    named = '--column', 'vector'
    assert run('fit', text, image, '--out', world/'a.safetensors', *named).returncode == 0
    assert run('apply', world/'a.safetensors', text, world/'out', *named).returncode == 0
    assert np.array_equal(open_embeddings(world/'out').read(), load(world/'a.safetensors').transform(z['text']))
    assert '24 float32' in run('measure', text, image, *named).stdout
    refused(run('measure', text, image, '--column', 'absent'), "none is 'absent'")
    refused(run('apply', world/'a.safetensors', text, world/'out', '--column', 'absent'), "none is 'absent'")


def test_a_swap_changes_the_result(world):
    run('fit', world/'text', world/'image', '--out', world/'right.safetensors')
    swapped = run('fit', world/'image', world/'text', '--out', world/'wrong.safetensors')
    assert f'{"text  (source, moves)"}' in swapped.stdout   # equal dimensions: no error, but the roles are printed
    for name in ('right', 'wrong'): run('apply', world/f'{name}.safetensors', world/'text', world/name)
    a, b = (np.load(next((world/name).rglob('*.npy'))) for name in ('right', 'wrong'))
    assert a.shape == b.shape and abs(a - b).max() > .01


def test_bad_input_is_one_line_and_writes_nothing(world):
    run('fit', world/'text', world/'image', '--out', world/'a.safetensors')
    (world/'empty').mkdir()
    (world/'wide').mkdir()
    np.save(world/'wide/0000.npy', np.ones((5, 30), np.float32))
    before = shards(world)
    refused(run('fit', world/'nowhere', world/'image'), 'nowhere', 'no such file')
    refused(run('fit', world/'empty', world/'image'), 'empty', 'no shards')
    refused(run('fit', world/'wide', world/'image', '--out', world/'b.safetensors'), 'd=30', 'd=24')
    refused(run('apply', world/'a.safetensors', world/'wide', world/'out'), 'd=30', 'fitted on d=24')
    refused(run('apply', world/'text/0000.npy', world/'text', world/'out'), 'is not a saved aligner')
    refused(run('apply', world/'text', world/'a.safetensors', world/'out'), 'text is a folder, not a saved aligner')
    for inside in (world/'text', world, world/'text/out'): refused(run('apply', world/'a.safetensors', world/'text', inside), 'holds the texts themselves')
    refused(run('reproduce', '--profile', 'huge'), 'smoke, cpu, gpu, paper')
    assert shards(world) == before


def pages(folder, parameters, **code):
    "A checkout with these notebooks, each of which leaves an empty file of its name."
    from nbformat import v4, write
    (folder/'settings.ini').touch()
    (folder/'nbs/paper').mkdir(parents=True, exist_ok=True)
    for name, line in code.items():
        work = f'from pathlib import Path\nrecords = Path("../../figures")\n{line}\nPath({name!r}).touch()'
        cells = [v4.new_code_cell(parameters, metadata={'tags': ['parameters']}), v4.new_code_cell(work)]
        write(v4.new_notebook(cells=cells, metadata={'language_info': {'name': 'python'}}), folder/'nbs/paper'/f'{name}.ipynb')


def saves(profile, name):
    record = {'claims': [{'id': 'X', 'paper': '1', 'ours': '2', 'verdict': 'direction', 'why': 'a test'}]}
    return f'(records/"{profile}").mkdir(parents=True)\n(records/"{profile}/{name}.json").write_text({json.dumps(record)!r})'


def made(folder): return sorted(f.name for f in (folder/'nbs/paper').iterdir() if not f.suffix)


def test_a_page_that_fails_does_not_stop_the_others(tmp_path):
    pages(tmp_path, "profile = ''", bad='1/0', fig07b='assert Path("tab01").exists()', tab01=saves('smoke', 'tab01'))
    done = run('reproduce', '--profile', 'smoke', cwd=tmp_path)
    assert done.returncode == 2 and 'direction' in done.stdout and 'Traceback' not in done.stderr
    assert 'bad: failed in a cell: ZeroDivisionError' in done.stderr and '1 of 3 notebooks failed: bad' in done.stderr
    assert made(tmp_path) == ['fig07b', 'tab01']   # fig07b measures time: it ran last


def test_own_embeddings_go_to_the_pages_that_take_them(tmp_path):
    for name in ('mine', 'others'): (tmp_path/name).mkdir()
    here = f'assert Path(embeddings) == Path({str(tmp_path/"mine")!r})\n'
    pages(tmp_path, "profile = ''", tab01='1/0')
    pages(tmp_path, "profile = ''\nembeddings = ''", fig03=here + saves('own', 'fig03'))
    pages(tmp_path, "profile = ''\nembeddings = ''\nother = ''", fig08=here + f'assert Path(other) == Path({str(tmp_path/"others")!r})')
    done = run('reproduce', '--embeddings', 'mine', cwd=tmp_path)
    assert done.returncode == 0 and 'direction' in done.stdout and made(tmp_path) == ['fig03'], done.stderr
    assert run('reproduce', '--embeddings', 'mine', '--other', 'others', '--only', 'fig08', cwd=tmp_path).returncode == 0
    refused(run('reproduce', '--embeddings', 'mine', '--only', 'tab', cwd=tmp_path), 'draws such a folder and starts with tab')
    refused(run('reproduce', '--embeddings', 'mine', '--write-back', cwd=tmp_path), '--write-back')
    refused(run('reproduce', '--embeddings', 'nowhere', cwd=tmp_path), 'No such file or directory', 'nowhere')
    for wrong in (('--profile', 'paper'), ('--long', 'mine')): refused(run('reproduce', *wrong, cwd=tmp_path), 'need --embeddings FOLDER')


@pytest.mark.parametrize('value, word', [(np.nan, 'NaN'), (np.inf, 'Inf'), (0, 'zero')])
def test_a_bad_row_is_named_by_file_and_row(world, value, word):
    whole = np.load(world/'text/0001.npy')
    z = whole.copy()
    z[17] = value
    run('fit', world/'text', world/'image', '--out', world/'a.safetensors')
    np.save(world/'text/0001.npy', z)
    refused(run('fit', world/'text', world/'image', '--out', world/'b.safetensors'), 'text/0001.npy row 17', word)
    assert not (world/'b.safetensors').exists()
    apply = 'apply', world/'a.safetensors', world/'text', world/'out'
    refused(run(*apply), 'text/0001.npy row 17', word)
    assert not (world/'out').exists()
    np.save(world/'text/0001.npy', whole)   # mended: the same command goes through
    assert run(*apply).returncode == 0


def test_a_truncated_file_is_named(world):
    path = world/'image/0002.npy'
    path.write_bytes(path.read_bytes()[:-7])
    refused(run('fit', world/'text', world/'image'), 'image/0002.npy')


def test_a_killed_apply_continues_with_the_same_bytes(world):
    rng = np.random.default_rng(1)
    for i in range(40): np.save(world/f'text/{i:04d}.npy', rng.standard_normal((5000, 24)).astype(np.float16))
    run('fit', world/'text', world/'image', '--out', world/'a.safetensors')
    args = ['apply', world/'a.safetensors', world/'text']
    assert run(*args, world/'whole', '--rows-per-shard', 4000).returncode == 0
    p = subprocess.Popen([*REALIGN, *map(str, args), str(world/'killed'), '--rows-per-shard', '4000'], stdout=subprocess.DEVNULL)
    while p.poll() is None and len(list((world/'killed').rglob('*.npy'))) < 5: time.sleep(.001)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL, 'the run ended before it could be killed'
    assert 0 < len(list((world/'killed').rglob('*[0-9].npy'))) < 50
    assert run(*args, world/'killed', '--rows-per-shard', 4000).returncode == 0
    assert shards(world/'killed') == shards(world/'whole')


def test_changed_texts_are_not_taken_for_the_old_ones(world):
    run('fit', world/'text', world/'image', '--out', world/'a.safetensors')
    assert run('apply', world/'a.safetensors', world/'text', world/'out').returncode == 0
    for f in (world/'text').glob('*.npy'): np.save(f, -np.load(f))   # the same names and sizes
    refused(run('apply', world/'a.safetensors', world/'text', world/'out'), 'out', 'from another source or with other settings')


def test_debug_shows_the_traceback(world):
    result = run('--debug', 'fit', world/'nowhere', world/'image')
    assert result.returncode != 0 and 'Traceback' in result.stderr


def test_help_names_every_command():
    out = run('--help').stdout
    for command in ('reproduce', 'fit', 'apply', 'measure', 'import-pickles'): assert command in out
    assert 'moves' in run('fit', '--help').stdout


def test_the_shell_completes_commands_and_values():
    expected = {'realign re': 'reproduce', 'realign reproduce --profile s': 'smoke', 'realign reproduce --only fig02': 'fig02_realign_steps'}
    for words, offered in expected.items():
        env = os.environ | {'_REALIGN_COMPLETE': 'complete_bash', 'COMP_WORDS': words, 'COMP_CWORD': str(words.count(' '))}
        assert run(env=env).stdout.split() == [offered]

"The artefact cache under processes that race or are killed."
import os
import signal
import subprocess
import sys
import time

import pytest

BUILD = '''
import os, sys, time
from pathlib import Path
from realign.core import artefact
def build(folder):
    with open(Path(os.environ['REALIGN_CACHE'])/'calls', 'a') as f: f.write('x')
    for i in range(20):
        part = folder/f'{i}'
        if part.exists(): continue
        part.write_text(str(i)*1000)
        time.sleep(float(sys.argv[1]))
print(artefact('demo', {'size': 1}, ('core',), build))
'''


def ask(cache, seconds):
    env = os.environ | {'REALIGN_CACHE': str(cache)}
    return subprocess.Popen([sys.executable, '-c', BUILD, str(seconds)], env=env, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once(tmp_path):
    folders = {p.communicate(timeout=120)[0] for p in [ask(tmp_path, .05) for _ in range(3)]}
    assert len(folders) == 1 and (tmp_path/'calls').read_text() == 'x'


def test_a_killed_build_leaves_nothing_half_written_and_is_continued(tmp_path):
    p = ask(tmp_path, .2)
    while not list(tmp_path.glob('demo/*.partial/3')): time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert not [f for f in tmp_path.glob('demo/*') if f.is_dir() and f.suffix != '.partial']
    kept = next(tmp_path.glob('demo/*.partial/0')).stat().st_mtime_ns
    folder = ask(tmp_path, 0).communicate(timeout=120)[0].strip()
    assert sorted(f for f in os.listdir(folder) if f.isdigit()) == sorted(map(str, range(20)))
    assert os.stat(f'{folder}/0').st_mtime_ns == kept and not list(tmp_path.glob('demo/*.partial'))


POOL = '''
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from realign.core import end_with_parent
if __name__ == '__main__':
    pool = ProcessPoolExecutor(1, get_context('spawn'), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
'''


def runs(pid):
    try: return os.readlink(f'/proc/{pid}/exe') != '' # a process that has ended and is not yet collected has none
    except OSError: return False


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_what_a_killed_run_has_started_ends(tmp_path):
    (tmp_path/'pool.py').write_text(POOL)
    p = subprocess.Popen([sys.executable, str(tmp_path/'pool.py')], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    child = int(p.stdout.readline())
    assert runs(child)
    p.kill()
    p.wait()
    until = time.monotonic() + 30
    while runs(child) and time.monotonic() < until: time.sleep(.05)
    assert not runs(child)

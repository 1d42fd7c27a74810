"Every notebook of the library runs, each in a process of its own. Those of nbs/paper run through papermill in test_paper."
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.doclinks import nbglob

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(n.absolute() for n in nbglob(ROOT/'nbs', as_path=True) if n.parent.name != 'paper')
RUN = '''
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
sys.exit(not passed)'''


@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_runs(notebook):
    done = subprocess.run([sys.executable, '-c', RUN, notebook], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f'a cell of {notebook.name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}'

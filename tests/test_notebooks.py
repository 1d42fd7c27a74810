"Every notebook of the library runs, each in a process of its own. Those of nbs/paper run through papermill in test_paper."
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(n.absolute() for n in nbglob(ROOT/'nbs', as_path=True) if n.parent.name != 'paper')


@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_runs(notebook):
    flags = get_config().tst_flags.split()
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        passed, _ = pool.submit(run_notebook, notebook, skip_flags=flags, basepath=ROOT).result()
    assert passed, 'a cell failed; its traceback is in the captured stderr'

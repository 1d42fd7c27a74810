"Every paper notebook runs in profile smoke, in a scratch folder, and leaves a complete record; the same again gives the same bytes."
import json
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs/paper').glob('*.ipynb'))
RECORD = set('schema id paper_ref profile params seeds inputs metrics claims env wall_s peak_mb'.split())
VERDICTS = set('reproduced direction not_reproduced inconclusive vacuous paper_inconsistent not_run'.split())


def figures(): return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (ROOT/'figures').rglob('*') if p.is_file()}


def execute(notebook, folder, monkeypatch):
    "Run a notebook; its records and its pictures."
    monkeypatch.setenv('REALIGN_FIGURES', str(folder))
    folder.mkdir()
    papermill.execute_notebook(notebook, folder/notebook.name, {'profile': 'smoke'}, cwd=notebook.parent, kernel_name='python3', progress_bar=False)
    records = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in (folder/'smoke').glob('*.json')}
    pictures = {p.name: p.read_bytes() for p in (folder/'smoke').glob('*.svg')}
    return records, pictures


def check_record(id, record):
    assert record.keys() == RECORD
    assert (record['id'], record['schema'], record['profile']) == (id, 1, 'smoke')
    assert record['inputs'] and record['metrics']
    schematic = record['params'].get('schematic', False)   # a picture that explains: it says so in its parameters, and has numbers but judges nothing
    assert bool(record['claims']) != schematic, f'{id}: a schematic has no claims, and every other record has some'
    for i in record['inputs']: assert {'name', 'sha256', 'n', 'd', 'dtype'} <= i.keys()
    for key, m in record['metrics'].items(): assert {'value', 'unit', 'interval', 'n', 'null'} <= m.keys(), key
    for c in record['claims']:
        assert {'id', 'paper', 'ours', 'interval', 'verdict', 'why'} <= c.keys(), c
        verdict, _, missing = c['verdict'].partition(':')
        assert verdict in VERDICTS and c['why'], c
        assert (verdict == 'not_run') == bool(missing), f"{c['id']}: not_run, and only that, says what is missing"


@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda n: n.stem)
def test_paper_notebook(notebook, tmp_path, monkeypatch):
    before = figures()
    records, pictures = execute(notebook, tmp_path/'first', monkeypatch)
    assert records and all(notebook.stem.startswith(id) for id in records), f'{notebook.name} wrote records {sorted(records)}'
    for id, record in records.items(): check_record(id, record)
    again, pictures_again = execute(notebook, tmp_path/'second', monkeypatch)
    assert pictures == pictures_again, 'the same numbers gave other pictures'
    for id, record in records.items():
        for part in ('metrics', 'claims'): assert record[part] == again[id][part], f'{part} of {id} differ between two runs'
    assert figures() == before, 'a run in a scratch folder touched figures/'

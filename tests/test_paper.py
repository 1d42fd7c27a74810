"Every paper notebook runs in profile smoke, in a scratch folder, and leaves a complete record, twice with the same bytes; and on few rows of a user."
import json
from pathlib import Path

import numpy as np
import pytest

from realign.cli import run_notebook
from realign.moments import normalize
from realign.shards import write_shards

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs/paper').glob('*.ipynb'))
OWN = [n for n in NOTEBOOKS if "embeddings = ''" in n.read_text(encoding='utf-8')]   # take a folder of the user's embeddings
MORE = {'fig08_domains': 'other', 'fig10_captions': 'long'}   # and a second one
RECORD = set('schema id paper_ref profile params seeds inputs metrics claims env wall_s peak_mb'.split())
VERDICTS = set('reproduced direction not_reproduced inconclusive vacuous paper_inconsistent not_run'.split())


def figures(): return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (ROOT/'figures').rglob('*') if p.is_file()}


def execute(notebook, folder, monkeypatch, **embeddings):
    "Run a notebook; its records and its pictures."
    monkeypatch.setenv('REALIGN_FIGURES', str(folder))
    folder.mkdir()
    run_notebook(notebook, folder/notebook.name, {'profile': 'smoke', **embeddings})
    written = folder/('own' if embeddings else 'smoke')
    records = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in written.glob('*.json')}
    return records, {p.name: p.read_bytes() for p in written.glob('*.svg')}


def check_record(id, record, profile='smoke'):
    assert record.keys() == RECORD
    assert (record['id'], record['schema'], record['profile']) == (id, 1, profile)
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


@pytest.fixture(scope='module')
def few_rows(tmp_path_factory):
    "Two folders of 250 pairs in 288 dimensions."
    root, rng, d = tmp_path_factory.mktemp('few'), np.random.default_rng(0), 288
    mean, spread = rng.standard_normal((2, d)), np.arange(1, d + 1.)**-.5
    for name in ('mine', 'others'):
        both = rng.standard_normal((250, d))
        for mu, modality in zip(mean, ('text', 'img')):
            rows = .2*mu + (both + .5*rng.standard_normal(both.shape))*spread
            write_shards(root/name, [normalize(rows).astype(np.float16)], f'{modality}_emb')
    return root


@pytest.mark.slow
@pytest.mark.parametrize('notebook', OWN, ids=lambda n: n.stem)
def test_fewer_rows_than_dimensions(notebook, few_rows, tmp_path, monkeypatch):
    more = {MORE[notebook.stem]: str(few_rows/'others')} if notebook.stem in MORE else {}
    records, pictures = execute(notebook, tmp_path/'few', monkeypatch, embeddings=str(few_rows/'mine'), **more)
    assert records and pictures
    for id, record in records.items(): check_record(id, record, 'own')
    verdicts = {c['id']: c['verdict'] for r in records.values() for c in r['claims']}
    for id in {'fig06_samples': ['F6'], 'fig09a_conditioning': ['F9a'], 'theory': ['T-c3']}.get(notebook.stem, []):
        assert verdicts[id].startswith('not_run:'), f'{id} was judged on rows that are too few for it: {verdicts[id]}'

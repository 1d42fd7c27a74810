"The checkout is consistent: package, notebooks, README, metadata and packaging agree, and nothing of one machine is in it."
import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

from realign.verdicts import cite

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(ROOT).parts))
PAPER = [n for n in NOTEBOOKS if n.parent.name == 'paper']
BIN = Path(sysconfig.get_path('scripts'))


def name(path): return str(path.relative_to(ROOT))


def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def run(*command, cwd, **env):
    "Run a program of the virtual environment; its output on success, its error in the test's failure otherwise."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | env
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, f'{command[0]} failed:\n{done.stdout}{done.stderr}'
    return done.stdout


def checked_in(*suffixes):
    "Files that are in git or will be, with these suffixes."
    try: listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError): pytest.skip('not a git checkout')
    files = (ROOT/f for f in listed.split('\0') if f)
    return sorted(f for f in files if f.is_file() and (not suffixes or f.suffix in suffixes))


def copy_of(folder, *names):
    for n in names:
        if (ROOT/n).is_dir(): shutil.copytree(ROOT/n, folder/n, ignore=shutil.ignore_patterns('.*', '__pycache__'))
        else: shutil.copy(ROOT/n, folder/n)
    return folder


def sources(folder): return {str(p.relative_to(folder)): p.read_text(encoding='utf-8') for p in folder.rglob('*.py')}


def cells(notebook): return json.loads(notebook.read_text(encoding='utf-8'))['cells']


# What is made from the notebooks

def test_package_is_what_the_notebooks_export(tmp_path):
    copy_of(tmp_path, 'settings.ini', 'nbs')
    (tmp_path/'realign').mkdir()
    shutil.copy(ROOT/'realign/__init__.py', tmp_path/'realign')
    run(BIN/'nbdev_export', cwd=tmp_path)
    here, exported = sources(ROOT/'realign'), sources(tmp_path/'realign')
    different = sorted(f for f in here.keys() | exported.keys() if here.get(f) != exported.get(f))
    assert not different, f"realign/ differs from the notebooks in {', '.join(different)}: edit the notebook, then `make export`"


def test_notebooks_are_clean(tmp_path):
    copy_of(tmp_path, 'settings.ini', 'nbs')
    run(BIN/'nbdev_clean', cwd=tmp_path)
    dirty = [name(n) for n in NOTEBOOKS if n.read_bytes() != (tmp_path/name(n)).read_bytes()]
    assert not dirty, f"not clean: {', '.join(dirty)}: run nbdev_clean"
    bars = [name(n) for n in NOTEBOOKS if 'widgets' in json.loads(n.read_text(encoding='utf-8'))['metadata']]
    assert not bars, f"progress bars are kept in {', '.join(bars)}: execute with store_widget_state=False"


@pytest.mark.parametrize('notebook', PAPER, ids=name)
def test_paper_notebook_has_one_parameters_cell(notebook):
    tagged = [c for c in cells(notebook) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, f'{len(tagged)} cells are tagged `parameters`, expected one: papermill replaces what stands there'
    assigned = ast.parse(''.join(tagged[0]['source'])).body
    assert all(isinstance(a, ast.Assign) for a in assigned), 'the parameters cell holds more than assignments'
    for a in assigned: ast.literal_eval(a.value)
    assert assigned[0].targets[0].id == 'profile', 'the first parameter is not `profile`'


def test_readme_is_the_index(tmp_path):
    run('make', '-s', '-o', '.venv/.stamp', 'readme', f'README={tmp_path/"README.md"}', cwd=ROOT)
    same = (tmp_path/'README.md').read_bytes() == (ROOT/'README.md').read_bytes()
    assert same, 'README.md differs from nbs/index.ipynb: edit the notebook, then `make readme`'


# What a reader meets

def test_local_links_lead_somewhere():
    broken = []
    for page in checked_in('.md'):
        targets = re.findall(r'\]\(([^)\s]+)\)|<img[^>]* src="([^"]+)"', page.read_text(encoding='utf-8'))
        local = [t for t in map(''.join, targets) if not re.match(r'[a-z]+:|#', t)]
        broken += [f'{name(page)}: {t}' for t in local if not (page.parent/t.split('#')[0]).exists()]
    assert not broken, broken


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name)
def test_notebook_is_small(notebook):
    assert notebook.stat().st_size < 1_000_000
    outputs = [o.get('data', {}) for c in cells(notebook) for o in c.get('outputs', [])]
    pictures = [(kind, ''.join(data)) for o in outputs for kind, data in o.items() if kind.startswith('image/')]
    sizes = [len(data) if 'svg' in kind else len(base64.b64decode(data)) for kind, data in pictures]
    assert all(size < 100_000 for size in sizes), sizes


@pytest.mark.parametrize('notebook', PAPER, ids=name)
def test_text_cites_what_was_measured(notebook):
    record = next(f for f in (ROOT/'figures/cpu').glob('*.json') if f'{notebook.stem}_'.startswith(f'{f.stem}_'))
    metrics = json.loads(record.read_text(encoding='utf-8'))['metrics']
    for text in (''.join(c['source']) for c in cells(notebook) if c['cell_type'] == 'markdown'):
        assert text == cite(text, metrics), 'a number of the text is not what the record has: `realign reproduce --profile cpu --write-back` puts it right'


# Nothing of one machine

FOREIGN = re.compile(r'(?<![\w.\])}*/~-])/(?:root|home|Users|work|opt|mnt|workspace)/\w|(?:pypi|pythonhosted|npmjs|conda-forge|anaconda)\.(?:org|com)'
                     r'|/tmp/ipy[k]|(?:--(?:extra-)?index-url|--find-links)[ =]+(?!https://download\.pytorch\.org)\S*/')


def test_no_path_or_registry_of_a_machine():
    here = [str(p) for p in (Path.home(), ROOT) if len(p.parts) > 2]
    found = []
    for file in checked_in():
        try: text = file.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        hits = [m.group() for m in FOREIGN.finditer(text)] + [p for p in here if p in text]
        found += [f'{name(file)}: {h}' for h in hits]
    assert not found, found


def test_no_reference_to_material_outside_the_checkout():
    files = [f for f in checked_in('.md', '.py', '.ipynb') if f.parent != ROOT/'tests']
    found = [name(f) for f in files if re.search(r'\.\./shared\b|\bshared/(?:golden|design|paper)', f.read_text(encoding='utf-8'))]
    assert not found, found


# Packaging

def test_every_requirement_is_pinned():
    pinned = set(re.findall(r'^([\w.-]+)==', (ROOT/'constraints.txt').read_text(encoding='utf-8'), re.M))
    required = {re.match(r'[\w.-]+', r)[0] for k, v in settings().items() if k.endswith('requirements') for r in v.split()}
    assert required <= pinned, f'not in constraints.txt: {required - pinned}'


def test_version_is_the_same_everywhere():
    version = settings()['version']
    assert f'\nversion: {version}\n' in (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f'"{version}"' in (ROOT/'realign/__init__.py').read_text(encoding='utf-8')


@pytest.mark.parametrize('module', ['realign', 'realign.align', 'realign.shards', 'realign.cli'])
def test_import_is_light_and_silent(module, tmp_path):
    code = f'''
import socket, sys
def refuse(*args, **kwargs): raise RuntimeError('a socket was opened on import')
socket.socket.__init__ = refuse
import {module}
print(*sorted({{'torch', 'transformers', 'open_clip'}} & sys.modules.keys()))'''
    assert run(sys.executable, '-c', code, cwd=tmp_path).strip() == ''


@pytest.mark.slow
def test_installs_from_a_clean_clone(tmp_path):
    clone, venv = tmp_path/'clone', tmp_path/'venv'
    for file in checked_in():
        (clone/name(file)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, clone/name(file))
    run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=tmp_path)
    python = venv/'bin/python'
    site = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip()
    (Path(site)/'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    offline = '--ignore-installed', '--no-deps', '--no-build-isolation', '--no-index'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', *offline, '.', cwd=clone)
    assert 'reproduce' in run(venv/'bin/realign', '--help', cwd=tmp_path, PYTHONPATH='')
    where = run(python, '-c', 'import realign; print(realign.__file__)', cwd=tmp_path, PYTHONPATH='').strip()
    assert Path(where).is_relative_to(venv), f'realign came from {where}'
    data = {f.name for f in (ROOT/'realign').glob('data/*')}
    assert data <= {f.name for f in Path(where).parent.glob('data/*')}, 'package data is missing from the installation'


# The theory

THEORY = [ROOT/'nbs'/f'03_{n}.ipynb' for n in ('frame', 'gradients', 'residuals', 'drift', 'coupling')]


def test_the_seventeen_statements_are_complete():
    "In order; each in words, with a property test and its numbers on real embeddings."
    statements = []
    for n in THEORY:
        text = '\n\n'.join(''.join(c['source']) for c in cells(n))
        statements += re.findall(r'^## Statement (\d+) (.*?)(?=^## Statement|\Z)', text, re.M | re.S)
    assert [int(i) for i, _ in statements] == list(range(1, 18))
    for i, text in statements:
        for part in ('**Said plainly.**', '@given(', "recorded('theory'"): assert part in text, f'statement {i} lacks {part}'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name)
def test_exported_cells_are_short(notebook):
    for c in cells(notebook):
        first, *code = ''.join(c['source']).splitlines() or ['']
        if c['cell_type'] == 'code' and first.startswith('#| export'): assert len(code) <= 40, f'{len(code)} lines: {code[0]}'

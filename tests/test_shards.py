"Embeddings on disk: bad files, kill and resume, hostile pickles, memory, round trips."
import json, os, pickle, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from realign.formats import HEADER
from realign.shards import check_pair, import_pickles, open_embeddings, write_shards

X = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
FORMATS, DTYPES = ('npy', 'safetensors', 'parquet'), ('float16', 'float32', 'float64')

def rows_from(X, ids=None, step=7):
    "A source as `write_shards` wants it: a function of the first row."
    def source(start):
        for at in range(start, len(X), step):
            block = X[at:at + step]
            yield (block, dict(id=ids[at:at + step])) if ids else block
    return source

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def python(code, *args, **options):
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

# ---- round trips

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('format', FORMATS)
def test_round_trip(tmp_path, format, dtype):
    ids = [f'row {i}' for i in range(50)]
    e = write_shards(tmp_path, rows_from(X.astype(dtype), ids), rows_per_shard=20, format=format)
    assert (e.n, e.d, e.dtype, len(e.files)) == (50, 8, dtype, 3)
    assert np.array_equal(e.read(), X.astype(dtype)) and e.read().dtype == dtype
    assert list(e.ids()) == ids and list(e) and list(e.ids(45)) == ids[45:]
    assert e.where(45).endswith(f'text_emb/text_emb_0002.{format} row 5')
    for block in e: block += 1 # blocks belong to the caller
    assert np.array_equal(e.read(), X.astype(dtype))

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 49))
def test_any_block_and_shard_size(tmp_path_factory, format, step, per_shard, rows, start):
    folder = tmp_path_factory.mktemp('any')
    ids = list(map(str, range(50)))
    e = write_shards(folder, rows_from(X, ids, step), rows_per_shard=per_shard, format=format)
    got = list(e.batches(rows, start))
    assert np.array_equal(np.concatenate([b for b, _ in got]), X[start:])
    assert [i for _, t in got for i in t['id'].to_pylist()] == ids[start:] == list(e.ids(start))
    assert all(len(b) <= min(rows, per_shard) for b, _ in got)

@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 60), st.integers(1, 60))
def test_bytes_do_not_depend_on_blocks(tmp_path_factory, format, step, per_shard):
    a, b, ids = tmp_path_factory.mktemp('a'), tmp_path_factory.mktemp('b'), list(map(str, range(50)))
    for folder, k in ((a, step), (b, 50)): write_shards(folder, rows_from(X, ids, k), rows_per_shard=per_shard, format=format)
    assert tree(a) == tree(b)

def test_files_are_the_formats_own(tmp_path):
    from safetensors.numpy import load_file
    assert np.array_equal(np.load(write_shards(tmp_path/'n', [X]).files[0]), X)
    assert np.array_equal(load_file(write_shards(tmp_path/'s', [X], format='safetensors').files[0])['embedding'], X)
    np.save(tmp_path/'plain.npy', X)
    assert (tmp_path/'plain.npy').read_bytes() == (tmp_path/'n/text_emb/text_emb_0000.npy').read_bytes()

def test_field_layout(tmp_path):
    for name, Z in (('text_emb', X), ('img_emb', X[:, ::-1])):
        (tmp_path/name).mkdir()
        for k in (0, 1): np.save(tmp_path/name/f'{name}_{k:04d}.npy', Z[25*k:25*k + 25])
    (tmp_path/'metadata').mkdir()
    for k in (0, 1):
        table = pa.table(dict(id=[f'{k}-{i}' for i in range(25)]))
        pq.write_table(table, tmp_path/f'metadata/metadata_{k:04d}.parquet')
    assert np.array_equal(open_embeddings(tmp_path, 'img').read(), X[:, ::-1])
    assert list(open_embeddings(tmp_path, 'text').ids(24)) == ['0-24', *(f'1-{i}' for i in range(25))]
    with pytest.raises(ValueError, match="give modality='text' or modality='img'"): open_embeddings(tmp_path)

def test_texts_and_images_in_one_folder(tmp_path):
    for k in range(2):
        for side, Z in (('text', X), ('img', -X)): np.save(tmp_path/f'{side}_emb_{k}.npy', Z[25*k:25*k + 25])
    assert np.array_equal(open_embeddings(tmp_path, 'img').read(), -X) and np.array_equal(open_embeddings(tmp_path, 'text').read(), X)
    with pytest.raises(ValueError, match="holds text_emb and img_emb files: give modality='text' or modality='img'$"): open_embeddings(tmp_path)
    for f in tmp_path.glob('img_emb*'): f.unlink()
    assert open_embeddings(tmp_path).n == open_embeddings(tmp_path, 'text').n == 50   # one side alone needs no name

# ---- bad files: one line that names file and row

def save(path, array):
    np.save(path, array)
    return path

def with_value(row, value):
    Z = X.copy()
    Z[row, 3 if value != 0 else slice(None)] = value
    return Z

@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('value, what', [(np.nan, 'contains NaN'), (np.inf, 'contains Inf'), (0, 'is a zero vector')])
def test_bad_row(tmp_path, format, value, what):
    Z = with_value(37, value)
    with pytest.raises(ValueError, match=what): write_shards(tmp_path/'w', [Z], rows_per_shard=20, format=format)
    with pytest.raises(ValueError, match=rf'^text_emb \(input\) row 37: {what}[^\n]*$'):
        write_shards(tmp_path/'later', [Z[:30], Z[30:]], rows_per_shard=20, format=format)
    assert not (tmp_path/'w').exists()
    assert {p.name for p in (tmp_path/'later/text_emb').iterdir()} == {'manifest.json', f'text_emb_0000.{format}'}
    path = tmp_path/f'x.{format}'
    if format == 'parquet': pq.write_table(pa.table(dict(embedding=list(Z))), path)
    else: path.write_bytes(HEADER[format](*Z.shape, Z.dtype) + Z.tobytes())
    with pytest.raises(ValueError, match=rf'x.{format} row 37: {what}[^\n]*$'): open_embeddings(path).read()
    assert len(open_embeddings(path).read(check=False)) == 50

def test_bad_files(tmp_path):
    good = save(tmp_path/'good.npy', X).read_bytes()
    def file(name, data):
        (tmp_path/name).write_bytes(data)
        return tmp_path/name
    tensor = HEADER['safetensors'](50, 8, X.dtype) + X.tobytes()
    table = file('t.parquet', b'')
    pq.write_table(pa.table(dict(embedding=list(X))), table)
    null = tmp_path/'null.parquet'
    pq.write_table(pa.table(dict(embedding=[[1., 2.], None])), null)
    bf16 = json.dumps(dict(embedding=dict(dtype='BF16', shape=[2, 2], data_offsets=[0, 8]))).encode()
    (tmp_path/'empty').mkdir()
    for path, what in {
        file('cut.npy', good[:-1]): 'truncated or damaged: 50 rows', file('long.npy', good + b'x'): 'truncated or damaged',
        file('head.npy', good[:50]): 'not a readable npy', file('text.npy', b'hello'): 'not a readable npy',
        file('cut.safetensors', tensor[:-1]): 'truncated', file('head.safetensors', tensor[:99]): 'truncated',
        file('none.safetensors', b''): 'truncated', file('cut.parquet', table.read_bytes()[:-9]): 'truncated',
        file('bf.safetensors', len(bf16).to_bytes(8, 'little') + bf16 + b'1'*8): 'holds BF16',
        save(tmp_path/'int.npy', np.ones((3, 3), int)): 'holds int64', save(tmp_path/'one.npy', np.ones(3)): 'two axes',
        save(tmp_path/'obj.npy', np.array([[{}]])): 'holds object', save(tmp_path/'f.npy', np.asfortranarray(X)): 'column by column',
        save(tmp_path/'none.npy', X[:0]): 'holds no rows', null: 'row 1: has 0 numbers, expected d=2',
        file('x.pkl', b''): 'unknown suffix', tmp_path/'empty': 'no shards', tmp_path/'absent': 'no such file',
    }.items():
        with pytest.raises(ValueError) as e: open_embeddings(path).read()
        message = str(e.value)
        assert path.name in message and what in message and '\n' not in message, message

def test_two_formats_in_one_folder(tmp_path):
    save(tmp_path/'a_0.npy', X), save(tmp_path/'a_1.npy', X)
    pq.write_table(pa.table(dict(embedding=list(X))), tmp_path/'a_2.parquet')
    with pytest.raises(ValueError, match=r'holds 2 .npy and 1 .parquet files, but a set has one format: move the others to another folder$'):
        open_embeddings(tmp_path)

def test_bad_sets(tmp_path):
    save(tmp_path/'a_0.npy', X), save(tmp_path/'a_1.npy', X[:, :5])
    with pytest.raises(ValueError, match='a_1.npy: d=5 float32, but .*a_0.npy: d=8'): open_embeddings(tmp_path)
    text, image = open_embeddings(tmp_path/'a_0.npy'), open_embeddings(tmp_path/'a_1.npy')
    with pytest.raises(ValueError, match='text .*a_0.npy.* d=8 but image .*a_1.npy.* d=5.*text first'): check_pair(text, image)
    e = write_shards(tmp_path/'set', [X], rows_per_shard=20)
    e.files[1].unlink()
    with pytest.raises(ValueError, match='holds 30 rows, expected 50'): open_embeddings(tmp_path/'set')
    (tmp_path/'s/text_emb').mkdir(parents=True), (tmp_path/'s/metadata').mkdir()
    save(tmp_path/'s/text_emb/text_emb_0000.npy', X)
    pq.write_table(pa.table(dict(id=['a'])), tmp_path/'s/metadata/metadata_0000.parquet')
    with pytest.raises(ValueError, match='metadata_0000.parquet: has 1 rows but text_emb/text_emb_0000.npy has 50'):
        list(open_embeddings(tmp_path/'s').ids())

def test_writer_refuses(tmp_path):
    for blocks, what in (([X[0]], r'expected floats of shape \(rows, d\)'), ([X.astype(int)], 'got a block of int64'), ([], 'no rows'),
                         ([X*1e5], r'Inf \(as float16\)'), ([(X, dict(id=['a']))], 'got 50 rows with 1 rows of metadata')):
        with pytest.raises(ValueError, match=what): write_shards(tmp_path/'none', blocks, dtype='float16')
        assert not (tmp_path/'none').exists()
    with pytest.raises(ValueError, match='got a block with d=5'): write_shards(tmp_path/'d', [X, X[:, :5]])
    with pytest.raises(ValueError, match='some blocks have columns'): write_shards(tmp_path/'m', [X[:1], (X[:1], dict(id=['a']))])
    with pytest.raises(ValueError, match='expected npy, safetensors or parquet'): write_shards(tmp_path/'d', [X], format='pkl')
    twice = [(X, dict(embedding=list(X)))]
    with pytest.raises(ValueError, match="has a column 'embedding'"): write_shards(tmp_path/'twice', twice, format='parquet')
    assert not (tmp_path/'twice').exists() and write_shards(tmp_path/'twice', twice).n == 50
    (tmp_path/'own/text_emb').mkdir(parents=True), save(tmp_path/'own/text_emb/mine.npy', X)
    with pytest.raises(ValueError, match='shards of another program'): write_shards(tmp_path/'own', [X])
    ids = list(map(str, range(50)))
    write_shards(tmp_path/'two', rows_from(X, ids), 'text_emb')
    with pytest.raises(ValueError, match='belongs to other embeddings'): write_shards(tmp_path/'two', rows_from(X, ids), 'img_emb')
    write_shards(tmp_path/'two', rows_from(X), 'img_emb')
    assert list(open_embeddings(tmp_path/'two', 'img').ids()) == ids

# ---- kill and resume

SLOW = '''
import sys, time, numpy as np
from realign.shards import write_shards
X = np.random.default_rng(1).standard_normal((5000, 16))
def source(start):
    print('from', start, flush=True)
    for at in range(start, 5000, 33):
        time.sleep(float(sys.argv[3]))
        yield X[at:at + 33], dict(id=[str(i) for i in range(at, min(at + 33, 5000))])
write_shards(sys.argv[1], source, key='k', rows_per_shard=600, format=sys.argv[2], dtype='float16')
'''

@pytest.mark.parametrize('format', FORMATS)
def test_kill_and_resume(tmp_path, format):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    assert python(SLOW, whole, format, 0).wait() == 0
    for shards in (1, 3): # killed twice, each time in the middle of a shard
        process = python(SLOW, killed, format, .005)
        while len(list(killed.glob(f'text_emb/*.{format}'))) <= shards:
            assert process.poll() is None
            time.sleep(.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(ValueError, match='not written to the end'): open_embeddings(killed)
    done = len(list(killed.glob(f'text_emb/*.{format}')))
    process = python(SLOW, killed, format, 0)
    assert process.communicate()[0] == f'from {600*done}\n' and process.returncode == 0
    assert tree(killed) == tree(whole) # and no temporary file is left

def test_a_bad_row_leaves_what_can_be_gone_on_with_or_nothing(tmp_path):
    bad = X.copy()
    bad[-1] = np.nan
    with pytest.raises(ValueError, match='NaN'): write_shards(tmp_path/'one', [bad])
    assert not (tmp_path/'one').exists()
    with pytest.raises(ValueError, match='NaN'): write_shards(tmp_path/'many', rows_from(bad), key='k', rows_per_shard=len(X)//2)
    with pytest.raises(ValueError, match='not written to the end'): open_embeddings(tmp_path/'many')
    with pytest.raises(ValueError, match='NaN'): write_shards(tmp_path/'many', [bad], key='k', rows_per_shard=len(X)//2)   # from the beginning again
    for folder in ('many', 'whole'): write_shards(tmp_path/folder, rows_from(X), key='k', rows_per_shard=len(X)//2)
    assert tree(tmp_path/'many') == tree(tmp_path/'whole')


def test_finished_set_asks_for_nothing(tmp_path):
    write_shards(tmp_path, rows_from(X), key='k')
    write_shards(tmp_path, lambda start: pytest.fail('asked again'), key='k')
    for change in (dict(key='other'), dict(format='parquet'), dict(rows_per_shard=3), dict(dtype='float64')):
        with pytest.raises(ValueError, match='was written (with|from another source)'): write_shards(tmp_path, rows_from(X), **(dict(key='k') | change))

# ---- pickles

def dump(path, obj, protocol=4):
    path.write_bytes(pickle.dumps(obj, protocol))
    return path

def records(array, field='caption'): return [{'id': i, field: f'{field} {i}', 'embed': row} for i, row in enumerate(array)]

class Call:
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

@pytest.mark.parametrize('protocol', range(6))
def test_import(tmp_path, protocol):
    (tmp_path/'in').mkdir()
    for k in range(3): dump(tmp_path/f'in/{k}.pkl', records(X[10*k:10*k + 10].astype(np.float16)), protocol)
    e = import_pickles(tmp_path/'in', tmp_path/'out', rows_per_shard=16)
    assert np.array_equal(e.read(), X[:30].astype(np.float16)) and e.dtype == np.float16
    assert list(e.ids(8))[:4] == ['8', '9', '0', '1'] and next(e.batches())[1]['caption'][3].as_py() == 'caption 3'
    assert not list(tmp_path.rglob('out/**/*.pkl'))

def hostile(mark):
    nested = np.empty(1, object)
    nested[0] = Call(os.system, f'touch {mark}')
    return dict(
        system=Call(os.system, f'touch {mark}'), eval=Call(eval, f'open({str(mark)!r}, "w")'),
        getattr=Call(getattr, Call(__import__, 'os'), 'system'), subclass=Call(getattr, (), '__class__'), nested=nested,
        record=[dict(id=0, caption='', embed=Call(exec, f'open({str(mark)!r}, "w")'))], type=type,
        load=Call(np.load, str(mark)), path=Path('/'), set=frozenset([print]), object_dtype=np.dtype(object),
        scalar=np.datetime64(1, 's'), structured=np.zeros(1, [('a', 'O')]))

HAND_MADE = dict(
    dotted=b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__call__\x93.", submodule=b'cnumpy.testing._private.utils\nrunstring\n.',
    prefix=b'cnumpy.core.os\nsystem\n.', persistent=b'Pid\n.', extension=b'\x82\x01.', inst=b'(ios\nsystem\n.',
    cut=b'\x80\x04]', empty=b'')

@pytest.mark.parametrize('name', [*hostile('x'), *HAND_MADE])
def test_hostile_pickles_are_refused(tmp_path, name):
    (tmp_path/'in').mkdir()
    mark = tmp_path/'mark'
    dump(tmp_path/'in/0.pkl', records(X))
    (tmp_path/'in/1.pkl').write_bytes(HAND_MADE[name] if name in HAND_MADE else pickle.dumps(hostile(mark)[name]))
    with pytest.raises(ValueError, match=r'^1.pkl: refused: [^\n]*$'): import_pickles(tmp_path/'in', tmp_path/'out')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in']

def test_stand_ins_cannot_be_altered(tmp_path):
    "A state set on a stand-in itself must not change how later files are read."
    from realign.pickles import read_pickle
    evil = b'c_codecs\nencode\n(N(S"__defaults__"\n(S"x"\nttdtb.'
    for attack in (evil, b'cnumpy\ndtype\n(dS"__setstate__"\nNsb.', b'cnumpy\nndarray\n(N(dS"__setstate__"\nNstb.'):
        (tmp_path/'a.pkl').write_bytes(attack)
        with pytest.raises(ValueError): read_pickle(tmp_path/'a.pkl')
        assert np.array_equal(read_pickle(dump(tmp_path/'b.pkl', X, 2)).array, X)

def test_bad_records(tmp_path):
    (tmp_path/'in').mkdir()
    good = records(X)
    for bad, what in ((records(X, 'image_path'), 'record 0: has .*image_path'), ({}, 'holds a dict'), ([], 'holds a list'),
                      ([*good, 3], 'record 50: has int'), (records(X.astype(int)), 'record 0: embed is int64'),
                      ([*good, *records(X[:, :3])], 'record 50: embed is float32 .3,.'), (records(with_value(9, np.nan)), 'row 9: contains NaN')):
        dump(tmp_path/'in/0.pkl', bad)
        with pytest.raises(ValueError, match=f'0.pkl.*{what}'): import_pickles(tmp_path/'in', tmp_path/'out')
        assert not (tmp_path/'out').exists()
    dump(tmp_path/'in/0.pkl', good)
    dump(tmp_path/'in/1.pkl', records(X[:, :5]))
    with pytest.raises(ValueError, match='d=5, expected d=8'): import_pickles(tmp_path/'in', tmp_path/'out')
    assert not (tmp_path/'out').exists()

# ---- memory

MEMORY = '''
import resource, sys, numpy as np
from realign.shards import open_embeddings, write_shards
folder, format, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
block = np.random.default_rng(0).standard_normal((2000, 256)).astype(np.float32)
source = ((block, dict(id=[str(i) for i in range(at, at + 2000)])) for at in range(0, n, 2000))
e = write_shards(folder, source, format=format, rows_per_shard=1_000_000)
assert sum(len(b) for b, _ in e.batches()) == n == sum(1 for _ in e.ids())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
'''

@pytest.mark.parametrize('format', FORMATS)
def test_memory_does_not_grow_with_rows(tmp_path, format):
    "Ten times the rows (205 MB instead of 20 MB, in one file) in about the same memory, written and read."
    peaks = []
    for n in (20_000, 200_000):
        out, err = python(MEMORY, tmp_path/str(n), format, n).communicate()
        assert out, err
        peaks.append(float(out))
    assert peaks[1] - peaks[0] < 40, f'peaks {peaks} MB'

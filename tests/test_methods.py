"Every method keeps its contract outside the notebook that defines it: files, resumption, a fresh process, a missing library."
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone

from realign.align import ReAlign, load, save
from realign.anisoalign import AnisoAlign, AnisoInit
from realign.baselines import C3, CapDec, Centre, DiagonalMoments, MeanShift, NoAlign, RandomTarget
from realign.covariance import BCAlign, CORAL, GaussianOT
from realign.oracles import PairedProcrustes, PairedRidge
from realign.transport import EntropicOT, MemoryProjection

METHODS = [
    NoAlign(), RandomTarget('anchor', 3), MeanShift(.5), Centre(), C3(.1), CapDec(), DiagonalMoments(), ReAlign(fixed_point=True), CORAL(.1), GaussianOT(),
    BCAlign(shrinkage='oas'), EntropicOT(.3), MemoryProjection(.1, n_support=200), AnisoInit(rotation=1), AnisoAlign(steps=3, width=8),
    PairedProcrustes(), PairedRidge()]
FRESH = '''
import sys
import numpy as np
from realign.align import load
z = np.load(sys.argv[1])
for path in sys.argv[2:]: np.save(path + '.npy', load(path).transform(z))
'''


@pytest.fixture(scope='module')
def pairs():
    rng = np.random.default_rng(0)
    content = rng.standard_normal((1300, 16))
    return content + 2*np.eye(16)[3], content*np.linspace(1.5, .5, 16) - np.eye(16)[7]


@pytest.fixture(scope='module', params=METHODS, ids=lambda m: type(m).__name__)
def fitted(request, pairs): return clone(request.param).fit(*pairs)


def test_files_give_what_arrays_give(fitted, pairs, tmp_path):
    for name, z in zip(('text', 'image'), pairs):
        (tmp_path/name).mkdir()
        for i, rows in enumerate(np.array_split(z, 3)): np.save(tmp_path/name/f'{i:04d}.npy', rows)
    again = clone(fitted).fit(tmp_path/'text', tmp_path/'image')
    assert abs(again.transform(tmp_path/'text') - fitted.transform(pairs[0])).max() < 1e-6
    assert abs(again.transform_image(tmp_path/'image') - fitted.transform_image(pairs[1])).max() < 1e-9


def test_resuming_gives_the_same_rows(fitted, pairs):
    text, whole = pairs[0], fitted.transform(pairs[0])
    assert abs(np.concatenate(list(fitted.stream(text, start=701))) - whole[701:]).max() < 1e-12
    if 'seed' not in fitted.get_params() or isinstance(fitted, (EntropicOT, MemoryProjection, AnisoInit)):
        assert abs(fitted.transform(text[5]) - whole[5]).max() < 1e-12


def test_kinds_of_array(fitted, pairs):
    torch = pytest.importorskip('torch')
    text, whole = pairs[0], fitted.transform(pairs[0])
    out = fitted.transform(torch.from_numpy(text).float())
    assert out.dtype == torch.float32 and not out.requires_grad and abs(out.double().numpy() - whole).max() < 1e-3
    assert fitted.transform(text.astype(np.float16)).dtype == np.float32


def test_swapping_the_sides_changes_the_result(fitted, pairs):
    if isinstance(fitted, (NoAlign, CapDec)): pytest.skip('learns nothing from the images')
    text, image = pairs
    assert abs(clone(fitted).fit(image=text, text=image).transform(text) - fitted.transform(text)).max() > 1e-2
    assert np.array_equal(clone(fitted).fit(image=image, text=text).transform(text), fitted.transform(text))


def test_wrong_input_is_one_line(fitted, pairs):
    text, image = pairs
    for call in (lambda: clone(fitted).fit(text[:, :3], image), lambda: fitted.transform(text[:, :3]), lambda: fitted.transform(text[:0]),
                 lambda: fitted.transform_image(image[:, :3]), lambda: clone(fitted).fit(text, np.where(np.arange(16) == 2, np.nan, image))):
        with pytest.raises(ValueError) as e: call()
        assert '\n' not in str(e.value) and len(str(e.value)) < 200


def test_a_saved_method_needs_no_import(pairs, tmp_path):
    np.save(tmp_path/'text.npy', pairs[0])
    whole = {}
    for method in METHODS:
        path = tmp_path/type(method).__name__
        method = clone(method).fit(*pairs)
        save(method, path)
        whole[str(path)] = method.transform(pairs[0])
        assert np.array_equal(load(path).transform(pairs[0]), whole[str(path)])
    subprocess.run([sys.executable, '-c', FRESH, tmp_path/'text.npy', *whole], check=True, env=os.environ)
    for path, expected in whole.items(): assert np.array_equal(np.load(path + '.npy'), expected)


def test_a_missing_library_is_named(pairs, monkeypatch):
    for name in ('ot', 'ot.gaussian'): monkeypatch.setitem(sys.modules, name, None)
    for method in (GaussianOT(), EntropicOT()):
        with pytest.raises(ImportError, match=r"pip install '.\[reproduce\]'"): method.fit(*pairs)


def test_oracles_refuse_what_cannot_be_pairs(pairs):
    for oracle in (PairedProcrustes(), PairedRidge()):
        with pytest.raises(ValueError, match='needs pairs'): oracle.fit(pairs[0][:-1], pairs[1])

"ReAlign against the authors' released script: its inputs and outputs lie beside the checkout, not in it."
from pathlib import Path

import numpy as np
import pytest

from realign.align import ReAlign, trace_scale

GOLDEN = Path(__file__).parents[2]/'shared/golden'
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="shared/golden, inputs and outputs of the authors' script, is not beside the checkout")
FILES = ('clip_coco_500', 'anisotropic_unpaired')


@pytest.fixture(params=FILES)
def golden(request):
    with np.load(GOLDEN/f'{request.param}.npz') as z: return dict(z)


def test_output_agrees_to_float32_rounding(golden):
    ours = ReAlign().fit(golden['text'], golden['image']).transform(golden['text'])
    assert ours.dtype == np.float32
    assert abs(ours.astype(np.float64) - golden['aligned']).max() <= 6e-8


def test_statistics_agree(golden):
    a = ReAlign().fit(golden['text'], golden['image'])
    for ours, theirs in ((a.s_, 'scale'), (a.mu_x_, 'mu_img'), (a.mu_y_, 'mu_txt'), (a.mu_prime_, 'mu_hat')):
        assert np.max(abs(ours - golden[theirs])) <= 1e-7, theirs
    T_x, T_y = (float(golden[k]) for k in ('trace_img', 'trace_txt'))
    assert abs(1 - a.mu_x_ @ a.mu_x_ - T_x) <= 1e-7 and abs(1 - a.mu_y_ @ a.mu_y_ - T_y) <= 1e-7
    assert abs(trace_scale(a.mu_x_, a.mu_y_) - golden['scale']) <= 1e-7


def test_anchors_of_clip_have_the_lengths_that_the_theory_quotes():
    with np.load(GOLDEN/'clip_coco_500.npz') as z: a = ReAlign().fit(z['text'], z['image'])
    assert [round(float(np.linalg.norm(mu)), 2) for mu in (a.mu_x_, a.mu_y_)] == [.73, .72]


def test_a_swap_or_a_missing_step_would_be_noticed(golden):
    text, image, theirs = (golden[k] for k in ('text', 'image', 'aligned'))
    for wrong in (ReAlign(trace=False), ReAlign(centroid=False), ReAlign(fixed_point=True)):
        assert abs(wrong.fit(text, image).transform(text) - theirs).max() > 1e-5
    assert abs(ReAlign().fit(text=image, image=text).transform(text) - theirs).max() > 1e-2


@pytest.mark.parametrize('name', FILES)
def test_from_files_too(name, tmp_path):
    with np.load(GOLDEN/f'{name}.npz') as z:
        for part in ('text', 'image'):
            (tmp_path/part).mkdir()
            for i, rows in enumerate(np.array_split(z[part], 3)): np.save(tmp_path/part/f'{i:04d}.npy', rows)
        aligner = ReAlign().fit(tmp_path/'text', tmp_path/'image')
        assert abs(aligner.transform(tmp_path/'text').astype(np.float64) - z['aligned']).max() <= 6e-8

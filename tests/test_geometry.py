"Every measurement: what a turn, another order, another number type and a user's folder do to it. What each number is, its notebook shows."
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realign.angles import cosine_correlation, js_cosines, mean_cosine
from realign.core import plain
from realign.geometry import measure, retrieval
from realign.mixing import mixing, separability
from realign.moments import normalize
from realign.neighbours import hubness, overlap
from realign.shards import open_embeddings, write_shards
from realign.spectra import anisotropy, condition, covariance_gap, directional_correlation, effective_rank, participation, power_law, residual_spectrum
from realign.spectra import spectral_correlation, subspace_overlap

WORLD = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SEED = st.integers(0, 2**32 - 1)
ONE = {f.__name__: f for f in (power_law, effective_rank, participation, condition, anisotropy, hubness)}
TWO = {f.__name__: f for f in (spectral_correlation, directional_correlation, subspace_overlap, covariance_gap, js_cosines, mixing, separability, hubness)}
MAP = {f.__name__: f for f in (overlap, mean_cosine, cosine_correlation)}
PAIR = {'anisotropy of the residual': lambda y, x: anisotropy(residual_spectrum(y, x)), 'retrieval': retrieval}


def clouds(seed, n=160, d=20):
    "Texts, and images that go with them, in two cones."
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, d))*np.arange(1, d + 1)**-.4
    x = .7*y + .5*rng.standard_normal((n, d))*np.arange(1, d + 1)**-.4
    return normalize(y + .3), normalize(x + .2), rng


def numbers(found):
    "Values and nulls of one measurement or of several."
    several = found if isinstance(found, dict) else {'': found}
    return np.array([[m.value, m.null] for m in several.values()])


def everything(y, x):
    found = {name: f(y) for name, f in ONE.items()} | {name: f(y, x) for name, f in (TWO | MAP | PAIR).items()}
    return {name: numbers(f) for name, f in found.items()}


def same(a, b, eps):
    for name in a: assert abs(a[name] - b[name]).max() <= eps*max(abs(a[name]).max(), 1), (name, a[name], b[name])


@WORLD
@given(SEED)
def test_a_turn_of_the_whole_space_changes_nothing(seed):
    y, x, rng = clouds(seed)
    turn = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    before, after = everything(y, x), everything(y @ turn, x @ turn)
    before.pop('separability'), after.pop('separability')   # its penalty is per coordinate
    same(before, after, 5e-3)   # float32 may move a cosine over the edge of a bin, or swap two neighbours


@WORLD
@given(SEED)
def test_values_do_not_depend_on_the_order_of_the_pairs(seed):
    y, x, rng = clouds(seed)
    order = rng.permutation(len(y))
    before, after = ({k: v[:, 0] for k, v in everything(*z).items() if k != 'separability'} for z in ((y, x), (y[order], x[order])))
    same(before, after, 1e-5)   # nulls and intervals cut the rows into groups, separability into folds


@WORLD
@given(SEED)
def test_the_number_type_does_not_matter(seed):
    y, x, _ = clouds(seed)
    y, x = y.astype(np.float16), x.astype(np.float16)
    wide = everything(y.astype(np.float64), x.astype(np.float64))
    for dtype in (np.float16, np.float32): same(wide, everything(y.astype(dtype), x.astype(dtype)), 1e-9)


@WORLD
@given(SEED)
def test_the_length_of_a_row_does_not_matter(seed):
    y, x, rng = clouds(seed)
    longer = [z*rng.uniform(.1, 10, (len(z), 1)) for z in (y, x)]
    same(everything(y, x), everything(*longer), 5e-3)


@WORLD
@given(SEED)
def test_values_stay_within_their_ranges_and_intervals_hold_them(seed):
    y, x, _ = clouds(seed)
    found = measure(y, x, y, paired=True)
    for name, m in found.items():
        assert np.isfinite([m.value, m.null]).all() and m.n == (80 if name == 'gap image–image' else 160), name
        if m.interval and name != 'gap': assert m.interval[0] <= m.value <= m.interval[1], name   # a gap at its floor may lie above its interval
    shares = [m.value for name, m in found.items() if name.startswith(('mixing', 'k-NN', 'subspace', 'R@', 'MRR', 'separability'))]
    assert 0 <= min(shares) <= max(shares) <= 1
    assert found['k-NN overlap k=10'].value == 1 and found['Φ'].value == pytest.approx(1)


def test_texts_and_images_are_not_interchangeable():
    y, x, _ = clouds(0)
    for name in ('covariance_gap', 'directional_correlation', 'hubness', 'mixing'):
        assert abs(numbers(TWO[name](y, x)) - numbers(TWO[name](x, y))).max() > 1e-4, name


def test_one_call_gives_everything_from_folders_and_a_record_can_hold_it(tmp_path):
    y, x, _ = clouds(1, n=600)
    for name, z in (('text_emb', y), ('img_emb', x), ('aligned', y + .05)): write_shards(tmp_path/name, [z.astype(np.float32)], rows_per_shard=250)
    found = measure(*(open_embeddings(tmp_path/name/'text_emb') for name in ('text_emb', 'img_emb', 'aligned')), paired=True, rows=200, pairs=300)
    quadratic = {name for name, m in found.items() if m.n == 200}
    assert {'JS', 'mixing text→image', 'entropy mixing M^X', 'separability', 'hubness text→image', 'Φ', 'Ψ', 'k-NN overlap k=10'} <= quadratic
    assert {m.n for name, m in found.items() if name.startswith(('trace', 'α', 'effective', 'spectral', 'covariance', 'anisotropy'))} == {600}
    assert found['R@1 text→image'].n == found['gap'].n == 300
    again = json.loads(json.dumps(plain(found), allow_nan=False))
    assert again.keys() == found.keys() and again['JS']['value'] == found['JS'].value


@pytest.mark.parametrize('collapsed', ['text', 'image', 'both'])
def test_a_collapsed_encoder_is_measured(collapsed):
    y, x, _ = clouds(2)
    same_row = np.tile(y[:1], (160, 1))
    found = measure(same_row if collapsed != 'image' else y, same_row if collapsed != 'text' else x)
    assert all(np.isfinite(m.value) for m in found.values()) and 'effective rank text' not in found


def test_sampling_takes_the_same_rows_before_and_after():
    y, x, _ = clouds(3, n=900)
    found = measure(y, x, y, rows=150)
    assert found['k-NN overlap k=10'].value == 1 and found['k-NN overlap k=10'].n == 150

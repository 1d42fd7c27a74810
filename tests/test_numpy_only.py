"Without torch, the same numbers come from numpy alone."
import os
import subprocess
import sys

import numpy as np

from realign.align import ReAlign
from realign.baselines import C3

SCRIPT = '''
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find_spec(name, package)   # as if it were not installed
import numpy as np
from realign.align import ReAlign
from realign.baselines import C3
z = np.load(sys.argv[1])
np.savez(sys.argv[2], a=ReAlign(fixed_point=True).fit(z['text'], z['image']).transform(z['text']), b=C3(.1).fit_transform(z['text'], z['image']))
assert 'torch' not in sys.modules
'''


def test_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    text, image = (rng.standard_normal((1300, 48)) + m for m in (.5, -.2))
    np.savez(tmp_path/'in.npz', text=text, image=image)
    subprocess.run([sys.executable, '-c', SCRIPT, tmp_path/'in.npz', tmp_path/'out.npz'], check=True, env=os.environ)
    with np.load(tmp_path/'out.npz') as theirs:
        assert abs(theirs['a'] - ReAlign(fixed_point=True).fit_transform(text, image)).max() < 1e-9
        assert abs(theirs['b'] - C3(.1).fit_transform(text, image)).max() < 1e-12

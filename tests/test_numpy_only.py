"Without torch, the same numbers come from numpy alone."
import os
import subprocess
import sys

import numpy as np

from realign.align import ReAlign, load, save
from realign.anisoalign import AnisoAlign, AnisoInit
from realign.baselines import C3, Centre, DiagonalMoments
from realign.covariance import BCAlign
from realign.oracles import PairedRidge
from realign.transport import MemoryProjection

METHODS = {'realign': ReAlign(fixed_point=True), 'c3': C3(.1), 'centre': Centre(), 'diagonal': DiagonalMoments(), 'bc': BCAlign(r=20),
           'memory': MemoryProjection(.1), 'aniso': AnisoInit(r=20), 'ridge': PairedRidge()}
SCRIPT = '''
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find_spec(name, package)   # as if it were not installed
import numpy as np
from realign.align import load
z, out = np.load(sys.argv[1]), {}
for path in sys.argv[3:]:
    method = load(path)
    out[path] = (method if hasattr(method, 'corrector_W1_') else type(method)(**method.get_params()).fit(z['text'], z['image'])).transform(z['text'])
np.savez(sys.argv[2], **out)
assert 'torch' not in sys.modules
'''


def test_same_numbers(tmp_path):
    rng = np.random.default_rng(0)
    text, image = (rng.standard_normal((1300, 48)) + m for m in (.5, -.2))
    np.savez(tmp_path/'in.npz', text=text, image=image)
    methods = {**METHODS, 'refined': AnisoAlign(r=20, steps=3, width=8)}   # its training needs torch, its use does not
    for name, method in methods.items(): save(method.fit(text, image), tmp_path/name)
    subprocess.run([sys.executable, '-c', SCRIPT, 'in.npz', 'out.npz', *methods], check=True, env=os.environ, cwd=tmp_path)
    with np.load(tmp_path/'out.npz') as theirs:
        for name in methods: assert abs(theirs[name] - load(tmp_path/name).transform(text)).max() < 1e-9, name

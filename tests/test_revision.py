"""A stage of training under what a notebook cannot hold: SIGKILL, several processes, FSDP, sets larger than memory should hold.

Run as a program, this file is the training that the tests launch: `python test_revision.py FOLDER [batch=4] [kill=8]`."""
import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('accelerate')
from realign.mllm import MLLM # before transformers: see realign.core.need
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from realign import revision
from realign.core import StageConfig, sha256_file
from realign.formats import HEADER
from realign.revision import Examples, last_checkpoint, peak_memory, train_stage
from realign.shards import open_embeddings

STAGE = dict(train_llm=False, lr=5e-3, steps=10, batch=8, save_every=4, log_every=2, bf16=False)
WORDS = 'red green blue star ring heart'.split()


def parts(seed=0):
    "A tiny model, its tokenizer, and examples."
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['[unk]', '<s>', '</s>', *WORDS])}, '[unk]'))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token='[unk]', bos_token='<s>', eos_token='</s>')
    torch.manual_seed(seed)
    llm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4))
    rng = np.random.default_rng(seed)
    texts = [' '.join(rng.choice(WORDS, 1 + i % 3)) for i in range(200)]
    return MLLM.from_llm(llm, 8, n_visual_tokens=2), tokenizer, Examples([{'caption': t} for t in texts], rng.standard_normal((200, 8)))


def train(folder, kill=None, **settings):
    if kill: revision._Watch.on_save = lambda self, args, state, control, **kwargs: os.kill(os.getpid(), signal.SIGKILL) if state.global_step == kill else mark(
        self, args, state, control, **kwargs)
    return train_stage(*parts(), StageConfig(**STAGE | settings), folder)


mark = revision._Watch.on_save


def launch(folder, *launcher, **settings):
    arguments = [str(folder), *(f'{k}={json.dumps(v)}' for k, v in settings.items())]
    return subprocess.run([*(launcher or [sys.executable]), __file__, *arguments], capture_output=True, text=True)


def record(folder): return json.loads((Path(folder)/'run.json').read_text())


def weights(folder): return MLLM.from_pretrained(folder).state_dict()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    done = launch(killed, kill=8) # when the files of checkpoint 8 are there, and before it is marked as whole
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (killed/'checkpoint-8').exists() and last_checkpoint(killed) == killed/'checkpoint-4'
    (killed/'checkpoint-8/optimizer.pt').write_bytes(b'half')
    train(killed)
    train(whole)
    assert sha256_file(killed/'model.safetensors') == sha256_file(whole/'model.safetensors')
    assert record(killed)['loss'] == record(whole)['loss'] and record(killed)['tokens'] == record(whole)['tokens']
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole))


TORCHRUN = sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'


def test_two_processes_are_one(tmp_path):
    done = launch(tmp_path/'two', *TORCHRUN, batch=4, train_llm=True, lr=1e-3)
    assert done.returncode == 0, done.stderr
    train(tmp_path/'one', batch=4, accumulation=2, train_llm=True, lr=1e-3)
    two, one = record(tmp_path/'two'), record(tmp_path/'one')
    assert (two['processes'], one['processes'], two['tokens']) == (2, 1, one['tokens'])
    np.testing.assert_allclose([v for _, v in two['loss']], [v for _, v in one['loss']], rtol=1e-4)
    a, b = weights(tmp_path/'two'), weights(tmp_path/'one')
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in b)


def test_workers_change_nothing(tmp_path):
    a, b = train(tmp_path/'a', steps=4), train(tmp_path/'b', steps=4, workers=2)
    assert sha256_file(a/'model.safetensors') == sha256_file(b/'model.safetensors')


def test_a_set_larger_than_memory_should_hold(tmp_path):
    n, d, rows = 2_000_000, 1280, [0, 1_234_567, 1_999_999]
    header = HEADER['npy'](n, d, np.dtype('<f2'))
    with open(tmp_path/'text_emb_0.npy', 'wb') as f: # a sparse file of 5 GB, of which three rows are written
        f.write(header)
        f.truncate(len(header) + 2*n*d)
        for row in rows:
            f.seek(len(header) + 2*row*d)
            f.write(np.full(d, 1 + row % 7, '<f2').tobytes())
    before = peak_memory()
    examples = Examples([{'caption': 'red', 'row': row} for row in [*rows, 5]], open_embeddings(tmp_path))
    assert [round(float(examples[i]['image'] @ examples[i]['image']), 3) for i in range(3)] == [1, 1, 1]
    with pytest.raises(ValueError, match='text_emb_0.npy row 5: is a zero vector'): examples[3]
    assert peak_memory() - before < 50


def test_records_on_disk(tmp_path):
    datasets = pytest.importorskip('datasets')
    talk = [{'role': 'user', 'content': 'red'}, {'role': 'assistant', 'content': 'blue'}]
    records = datasets.Dataset.from_list([{'messages': talk, 'row': 2}, {'messages': talk, 'row': None}])
    examples = Examples(records, np.eye(3, 8))
    assert examples[0]['messages'] == talk and examples[0]['image'][2] == 1 and 'image' not in examples[1]


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(tmp_path/'a', steps=2)
    model, tokenizer, examples = parts(seed=1)
    with pytest.raises(ValueError, match='other stage'): train(tmp_path/'a', steps=3)
    with pytest.raises(ValueError, match='other projector at the start and language model at the start and examples'):
        torch.nn.init.zeros_(model.projector[0].weight)
        examples.records = examples.records[:100]
        train_stage(model, tokenizer, examples, StageConfig(**STAGE | dict(steps=2)), tmp_path/'a')


DATA = resources.files('realign')/'data'


def test_fsdp_configuration():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import FullyShardedDataParallelPlugin
    c = load_config_from_file(str(DATA/'fsdp.yaml'))
    assert (c.distributed_type, c.num_processes, c.mixed_precision) == ('FSDP', 8, 'bf16')
    known = FullyShardedDataParallelPlugin.__dataclass_fields__.keys() | {'offload_params', 'transformer_layer_cls_to_wrap'}
    assert {k.removeprefix('fsdp_') for k in c.fsdp_config} - {'version'} <= known


def test_deepspeed_configuration(tmp_path):
    pytest.importorskip('deepspeed')
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
    args = revision._arguments(StageConfig(**STAGE | dict(accumulation=2)), tmp_path, {})
    zero2 = HfTrainerDeepSpeedConfig(str(DATA/'zero2.json'))
    zero2.trainer_config_process(args)
    zero2.trainer_config_finalize(args, parts()[0], 10)
    assert (zero2.config['train_batch_size'], zero2.config['train_micro_batch_size_per_gpu']) == (16, 8)
    assert zero2.config['gradient_clipping'] == 1 and 'auto' not in json.dumps(zero2.config)


if __name__ == '__main__':
    folder, *settings = sys.argv[1:]
    train(Path(folder), **{k: json.loads(v) for k, v in (s.split('=') for s in settings)})

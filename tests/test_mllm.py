"The model with other language models, in another process, and what the loss sees."
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

torch = pytest.importorskip('torch')
from realign.mllm import IMAGE, MLLM, answer, collate, encode # before transformers: see realign.core.need
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

WORDS = 'a red blue star ring what is here ? user assistant and'.split()
CHAT = ("<s>{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{{ '</s>' if m['role'] == 'assistant' }}\n{% endfor %}"
        "{{ ' assistant ' if add_generation_prompt }}")
sizes = dict(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2)
LLMS = {'llama': LlamaConfig(**sizes), 'llama, tied': LlamaConfig(**sizes, tie_word_embeddings=True), 'qwen2': Qwen2Config(**sizes, num_key_value_heads=2),
        'gpt2': GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)}


def tokenizer(template=None):
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['[unk]', '<s>', '</s>', *WORDS])}, '[unk]'))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token='[unk]', bos_token='<s>', eos_token='</s>', chat_template=template)


def build(name='llama', **kwargs):
    torch.manual_seed(0)
    return MLLM.from_llm(AutoModelForCausalLM.from_config(LLMS[name]), d=8, n_visual_tokens=3, **kwargs).eval()


def examples():
    z, said = np.random.default_rng(0).standard_normal((3, 8)), [{'role': 'user', 'content': 'what is here ?'}, {'role': 'assistant', 'content': 'a red star'}]
    return [{'image': z[0], 'messages': said}, {'image': z[1], 'caption': 'a blue ring'}, {'image': z[2], 'messages': 2*said}, {'messages': said}]


@pytest.mark.parametrize('name', LLMS)
def test_any_causal_language_model(name, tmp_path):
    model, batch = build(name), collate(examples(), tokenizer(CHAT), 3)
    out = model(**batch)
    out.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.projector.parameters())
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob('*.bin'))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**batch).logits, out.logits)
    questions, image = ['what is here ?', 'what ?', 'and what is here ?'], batch['image']
    together = answer(again, tokenizer(CHAT), questions, image, max_new_tokens=8)
    alone = [answer(model, tokenizer(CHAT), [q], z[None], max_new_tokens=8)[0] for q, z in zip(questions, image)]
    assert together == alone, 'padding on the left changes what is written'


def test_reloads_in_another_process(tmp_path):
    model = build(projector='linear')
    model.save_pretrained(tmp_path)
    code = f'''
import torch, realign.mllm
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
print(model(torch.tensor([[1, -200, -200, -200, 5]]), torch.ones(1, 8)).logits.double().sum().item())'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == model(torch.tensor([[1, IMAGE, IMAGE, IMAGE, 5]]), torch.ones(1, 8)).logits.double().sum().item()


turn = st.tuples(*(st.lists(st.sampled_from(['a', 'red', 'blue', 'star', 'what', '?']), min_size=1, max_size=4).map(' '.join) for _ in range(2)))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(turn, min_size=1, max_size=3), st.sampled_from([None, CHAT]), st.integers(1, 4), st.booleans())
def test_only_the_answers_are_learned(turns, template, n, seen):
    messages = [{'role': r, 'content': c} for pair in turns for r, c in zip(('user', 'assistant'), pair)]
    t = tokenizer(template)
    ids, labels = encode(t, {'messages': messages, 'image': np.ones(8) if seen else None}, n)
    assert len(ids) == len(labels) and all(label in (-100, token) for token, label in zip(ids, labels))
    assert t.decode([x for x in labels if x >= 0]) == ' '.join(f'{a} </s>' for _, a in turns)
    assert ids.count(IMAGE) == n*seen
    asked, _ = encode(t, {'messages': messages[:-1], 'image': np.ones(8) if seen else None}, n)
    assert ids[:len(asked)] == asked, 'what is asked is how the example began'


def test_the_loss_sees_answers_only():
    model, batch = build(), collate(examples(), tokenizer(CHAT), 3)
    out = model(**batch)
    out.logits.retain_grad()
    out.loss.backward()
    learned = (out.logits.grad.abs().sum(-1) > 0)[:, :-1]
    assert torch.equal(learned, batch['labels'][:, 1:] >= 0)


def test_padding_is_not_read():
    model, batch = build(), collate(examples(), tokenizer(CHAT), 3)
    other = batch | {'input_ids': batch['input_ids'].masked_fill(batch['attention_mask'] == 0, 9)}
    kept = batch['attention_mask'].bool()
    assert torch.equal(model(**batch).logits[kept], model(**other).logits[kept]) and not kept.all()


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import realign.mllm"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'ImportError' in done.stderr and '.[train]' in done.stderr


def test_every_parameter_has_a_gradient_without_images():
    model = build()
    model(**collate(examples()[3:], tokenizer(CHAT), 3)).loss.backward()
    assert all(p.grad is not None for p in model.parameters()), 'what DistributedDataParallel needs'

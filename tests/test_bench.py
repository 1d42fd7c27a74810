"An oracle that reads the words of a question and answers from the factors of the scene; other processes; files."
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from realign.captions import NUMBERS
from realign.questions import FACTS, TASKS, VALUES, ask, describe, listing
from realign.scenes import DOMAINS, OBJECT_FACTORS, SCENE_FACTORS, sample_scenes

COLOUR, SHAPE, PLACE = ('|'.join(sorted(VALUES[f], key=len, reverse=True)) for f in ('colour', 'shape', 'place'))
THING, RELATION = f'(?:{COLOUR}) (?:{SHAPE})', 'left of|right of|above|below'


class Scene:
    "What is there, in words. Every reference must be to exactly one thing."
    def __init__(self, s, i):
        self.things = [{f: VALUES[f][getattr(s, f)[i, k]] for f in OBJECT_FACTORS} for k in range(s.n_objects[i])]
        self.whole = {f: VALUES[f][getattr(s, f)[i]] for f in SCENE_FACTORS}
        for t, at in zip(self.things, s.place[i]): t.update(row=at//3, column=at % 3, name=f"{t['colour']} {t['shape']}")

    def the(self, **what):
        found = [t for t in self.things if all(t[k] == v for k, v in what.items())]
        assert len(found) == 1, f'{what} is said of {len(found)} things'
        return found[0]

    def related(self, how, b): # what is left of b, and so on
        test = {'left of': lambda t: t['column'] < b['column'], 'right of': lambda t: t['column'] > b['column'],
                'above': lambda t: t['row'] < b['row'], 'below': lambda t: t['row'] > b['row']}[how]
        return [t for t in self.things if test(t)]

    def has(self, name): return any(t['name'] == name for t in self.things)


def polar(truth): return {'yes' if truth else 'no'}


def reading(s, f): return [t[f] for t in sorted(s.things, key=lambda t: (t['row'], t['column']))]


def property_of(s, shape, word): # the factor is told by the word, but for words that two factors share
    return polar(word in [s.the(shape=shape)[f] for f in ('colour', 'texture', 'size')])


ORACLE = { # pattern → the true answers
    r'is the number of shapes (\w+)\?': lambda s, n: polar(NUMBERS[len(s.things) - 1] == n),
    rf'is the ({SHAPE}) in the ({PLACE})\?': lambda s, f, p: polar(s.the(shape=f)['place'] == p),
    r'is the background (\w+)\?': lambda s, w: polar(w in (s.whole['bg_kind' if w in VALUES['bg_kind'] else 'bg_colour'],)),
    r'is the light (\w+)\?': lambda s, w: polar(s.whole['light'] == w),
    rf'is the ({SHAPE}) (\w+)\?': property_of,
    r'how many shapes are there\?': lambda s: {NUMBERS[len(s.things) - 1]},
    r'what colour is the background\?': lambda s: {s.whole['bg_colour']},
    r'what pattern has the background\?': lambda s: {s.whole['bg_kind']},
    r'how is the light\?': lambda s: {s.whole['light']},
    rf'what colour is the ({SHAPE})\?': lambda s, f: {s.the(shape=f)['colour']},
    rf'what texture has the ({SHAPE})\?': lambda s, f: {s.the(shape=f)['texture']},
    rf'which shape is ({COLOUR})\?': lambda s, c: {s.the(colour=c)['shape']},
    rf'which thing has the colour of the ({SHAPE})\?': lambda s, f: {dict(zip(VALUES['colour'], FACTS['colour']))[s.the(shape=f)['colour']]},
    r'what colour is the one like a (\w+)\?': lambda s, x: {s.the(shape=dict(zip(FACTS['shape'], VALUES['shape']))[x])['colour']},
    rf'where is the ({COLOUR}) ({SHAPE})\?': lambda s, c, f: {s.the(colour=c, shape=f)['place']},
    rf'what is in the ({PLACE})\?': lambda s, p: {s.the(place=p)['name']},
    rf'which (colour|shape) is ({RELATION}) the ({SHAPE})\?': lambda s, f, how, b: {t[f] for t in s.related(how, s.the(shape=b))},
    rf'which (colour|shape) shares the (size|texture) of the ({SHAPE})\?':
        lambda s, f, g, b: {t[f] for t in s.things if t is not s.the(shape=b) and t[g] == s.the(shape=b)[g]},
    r'row by row the (colour|shape) repeats\. which \1 is next\?': lambda s, f: {reading(s, f)[0]},
    r'row by row the (colour|shape) turns back\. which \1 is next\?': lambda s, f: {reading(s, f)[-2]},
    rf'is there any ({THING}) and any ({THING})\?': lambda s, a, b: polar(s.has(a) and s.has(b)),
    rf'is there any ({THING}) or any ({THING})\?': lambda s, a, b: polar(s.has(a) or s.has(b)),
    rf'is there any ({THING}) but no ({THING})\?': lambda s, a, b: polar(s.has(a) and not s.has(b)),
    rf'is there no ({THING}) and no ({THING})\?': lambda s, a, b: polar(not (s.has(a) or s.has(b))),
    rf'is there any ({THING})\?': lambda s, a: polar(s.has(a)),
    rf'where is the ({THING}) from the ({THING})\?':
        lambda s, a, b: {how for how in RELATION.split('|') if s.the(name=a) in s.related(how, s.the(name=b))},
    rf'what is ({RELATION}) the ({THING})\?': lambda s, how, b: {t['name'] for t in s.related(how, s.the(name=b))},
    rf'what is the ({THING}) ({RELATION})\?': lambda s, a, how: {b['name'] for b in s.things if s.the(name=a) in s.related(how, b)}}


def oracle(scene, text):
    "All true answers to a question, from its words and the scene."
    for pattern, answer in ORACLE.items():
        if m := re.fullmatch(pattern, text): return answer(scene, *m.groups())
    raise AssertionError(f'the oracle does not understand {text!r}')


@pytest.mark.parametrize('domain', DOMAINS)
@pytest.mark.parametrize('task', TASKS)
def test_oracle_answers_everything(task, domain):
    scenes = sample_scenes(5, 20_000_000 + np.arange(2000), domain)
    asked = [(q, Scene(scenes, i)) for i, q in enumerate(ask(scenes, task)) if q]
    assert len(asked) > 300
    for q, scene in asked:
        true = oracle(scene, q.text)
        assert true & set(q.options) == {q.options[q.answer]}, (q, true)
    answered = Counter(q.options[q.answer] for q, _ in asked) if len(asked[0][0].options) == 2 else Counter(q.answer for q, _ in asked)
    chance = 1/len(asked[0][0].options)
    assert max(answered.values())/len(asked) < chance + 4*(chance*(1 - chance)/len(asked))**.5, answered


def test_reading_the_listing_is_reading_the_scene():
    scenes = sample_scenes(5, np.arange(50), 'scope')
    for i, text in enumerate(listing(scenes, brief=True)):
        names = re.findall(THING, text)
        assert names == reading(Scene(scenes, i), 'name')


def fingerprint():
    scenes = sample_scenes(2602, np.arange(64), 'poster')
    return [(q.text, q.options, q.answer) for task in TASKS for q in ask(scenes, task) if q]


def test_another_process_asks_the_same():
    code = 'import json, test_bench; print(json.dumps(test_bench.fingerprint()))'
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([os.path.dirname(__file__), *(p for p in sys.path if p)]), 'PYTHONHASHSEED': '7'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(fingerprint()))


def test_a_question_does_not_depend_on_its_neighbours():
    scenes = sample_scenes(3, np.arange(40), 'scope')
    for task in TASKS:
        assert ask(scenes[::-1], task)[::-1] == ask(scenes, task)
        assert ask(scenes[7:9], task) == ask(scenes, task)[7:9]
    few = [q for task in TASKS for q in ask(scenes, task)[:3] if q]
    assert describe(few[::-1], 'short')[::-1] == describe(few, 'short')

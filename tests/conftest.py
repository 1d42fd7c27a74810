"Settings for all tests: quiet progress bars, offline hub, registered marks, and who shares a worker."
import os

import pytest

os.environ.setdefault('REALIGN_QUIET', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')


def shared(notebook):
    "What of the cache a notebook reads that takes long to make: tests that read the same go to one worker, or one of two would wait for the other."
    text = notebook.read_text(encoding='utf-8')
    if any(word in text for word in ('trained_llm', 'vector_llm', 'realign.arms', 'realign.schedule', 'realign.tables')): return 'language models'
    return 'encoders' if any(word in text for word in ('trained_encoder', 'realign.artefacts')) else None


def pytest_collection_modifyitems(items):
    for item in items:
        notebook = getattr(item, 'callspec', None) and item.callspec.params.get('notebook')
        if notebook and 'few_rows' not in item.fixturenames and (group := shared(notebook)): item.add_marker(pytest.mark.xdist_group(group))


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than a few seconds')

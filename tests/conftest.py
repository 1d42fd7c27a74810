"Settings for all tests: quiet progress bars, offline hub, registered marks."
import os

os.environ.setdefault('REALIGN_QUIET', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than a few seconds')

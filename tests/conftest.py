"""What the tests share."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from filelock import FileLock

from tests.command import run_command
from tests.training.small import Tiny, make_tiny

# pytest-xdist runs one worker a core: more threads than cores make every barrier wait. In the commands they start, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # a test that forbids the network says so itself
    os.environ.pop(switch, None)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images (see CONTRIBUTING.md)."""
    folder = os.environ.get("EXCITE_TEST_DATA")
    if not folder:
        pytest.skip("EXCITE_TEST_DATA is not set: it names the folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar(test_data, tmp_path_factory):
    """A small part of CIFAR-10 (JPEG copy) as the original pickles ("batches") and as class folders ("folder")."""
    root = tmp_path_factory.mktemp("cifar")
    for form in ("batches", "folder"):
        command = [sys.executable, str(test_data / "unpack.py"), f"cifar-{form}", str(root / form)]
        subprocess.run([*command, "--train", "600", "--test", "200"], check=True, capture_output=True)
    return {"batches": root / "batches", "folder": root / "folder"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """A small gated network and its ungated twin, trained for two epochs; all processes of the tests share them."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root  # the one that this session's workers share
    with FileLock(root / "tiny.lock"):
        if not (root / "tiny").is_dir():
            make_tiny(root / "tiny")
    return Tiny(*(next((root / "tiny" / name).iterdir()) for name in ("gated", "bare")))


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium, driven by Selenium; all requests and the console are in its logs."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed (pip install excite[test])")
    places = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in places:
        pytest.skip("there is no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = places[0]
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-sync"):
        options.add_argument(f"--{word}")
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(places[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def peers() -> str | None:
    """Where `make test-peers` puts other people's software that tests run ours beside; None where it did not."""
    from excite.models.timm_models import PEERS

    folder = Path(__file__).parents[1] / ".peers"
    if folder.is_dir():
        os.environ.setdefault(PEERS, str(folder))
    return os.environ.get(PEERS)


@pytest.fixture(scope="session")
def timm(peers):
    """timm, from the environment or from where `make test-peers` puts it."""
    from excite.errors import ExciteError
    from excite.models.timm_models import import_timm

    try:
        return import_timm()
    except ExciteError as error:
        absent(error, peers)


@pytest.fixture(scope="session")
def sklearn(peers):
    """scikit-learn, likewise. It is not among what the tests need: with it comes SciPy, and where that is installed
    torchmetrics imports it, which takes 1.7 s of every process of a training."""
    if peers and peers not in sys.path:
        sys.path.append(peers)
    try:
        import sklearn.datasets
        import sklearn.metrics
    except ImportError as error:
        absent(error, peers)
    return sklearn


def absent(error: Exception, peers: str | None) -> NoReturn:
    """Skip; but what was fetched, or is said to be there, does not work, and to skip would hide it."""
    if peers:
        pytest.fail(f"{error} (EXCITE_PEERS is {peers})")
    pytest.skip(f"{error} (`make test-peers` puts it into .peers)")


#: Whose slow tests CI runs, too: launchers, killed runs, every recipe, model and hook.
HEAVY = (
    "training",
    "test_twins.py",
    "recipes",
    "test_children.py",
    "test_text.py",
    "export/test_runtimes.py",
    "models",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that ask for other people's software are marked "peers": `make test-peers` fetches it and runs them.

    Slow tests of the folders and files above are "heavy", too.
    """
    folder = Path(__file__).parent
    heavy = [folder / name for name in HEAVY]
    for item in items:
        if "peers" in getattr(item, "fixturenames", ()):
            item.add_marker("peers")
        if item.get_closest_marker("slow") and any(item.path.is_relative_to(place) for place in heavy):
            item.add_marker("heavy")


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: every later collection would look through it, for 0.5 s or more."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def excite(tmp_path):
    """Run the real command in an empty folder: ``excite("train", ...)`` gives the finished process."""

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = run_command(words, tmp_path)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    run.cwd = tmp_path  # type: ignore[attr-defined]
    return run


@pytest.fixture
def command(monkeypatch, capsys):
    """A function: run a command; (exit status, standard output, standard error)."""

    from excite import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["excite", *map(str, words)])
        monkeypatch.setattr(cli, "leave_quickly", lambda: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run

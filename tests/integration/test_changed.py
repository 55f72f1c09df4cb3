"""`make changed`: which tests belong to a file, and which files git calls changed."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.changed import changed_files, select_tests

FILES = {
    "tlora/results.py": "",
    "tlora/adapters/attach.py": "",
    "tlora/adapters/lora_layers.py": "",
    "viz/browser/tests/panels.test.js": "",
    "viz/widgets/panels/reads.py": "",
    "tests/conftest.py": 'pytest_plugins = ["tests.helpers.adapted"]',
    "tests/helpers/models.py": "",
    "tests/helpers/adapted.py": "from tests.helpers.models import tiny_model",
    "tests/helpers/model.py": "",
    "tests/helpers/results.py": "",
    "tests/unit/test_init.py": "",
    "tests/unit/test_results.py": "from tests.helpers import models, results",
    "tests/unit/adapters/test_attach.py": "from tests.helpers.adapted import adapted_model",
    "tests/unit/adapters/test_files.py": "SCRIPT = '''\nfrom tests.helpers.adapted import adapted_model\n'''",
    "tests/unit/viz/conftest.py": "from tests.helpers.results import run",
    "tests/unit/viz/test_style.py": "",
    "tests/unit/viz/widgets/test_bundle.py": "",
    "tests/slow/test_kills.py": "from tests.helpers.models import tiny_model",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("tlora/adapters/attach.py", ["tests/unit/adapters/test_attach.py"]),
        ("tlora/adapters/lora_layers.py", ["tests/unit/adapters"]),
        ("tlora/adapters/deleted.py", ["tests/unit/adapters"]),
        ("tlora/results.py", ["tests/unit/test_results.py"]),
        ("tlora/__init__.pyi", ["tests/unit/test_init.py"]),
        ("viz/style.py", ["tests/unit/viz/test_style.py"]),
        ("viz/widgets/panels/reads.py", ["tests/unit/viz/widgets"]),
        ("viz/browser/panels/panels.js", ["tests/unit/viz/widgets/test_bundle.py", "viz/browser/tests"]),
        ("tests/slow/test_kills.py", ["tests/slow/test_kills.py"]),
        ("tests/slow/test_deleted.py", []),
        ("tests/unit/viz/conftest.py", ["tests/unit/viz"]),
        ("tests/helpers/adapted.py", ["tests/unit/adapters/test_attach.py", "tests/unit/adapters/test_files.py"]),
        (
            "tests/helpers/models.py",
            ["tests/unit/adapters/test_attach.py", "tests/unit/adapters/test_files.py", "tests/unit/test_results.py"],
        ),
        ("tests/helpers/model.py", []),
        ("tests/helpers/results.py", ["tests/unit/test_results.py", "tests/unit/viz"]),
        ("README.md", []),
        ("docs/testing.md", []),
    ],
)
def test_the_select_tests_a_file(project: Path, changed: str, tests: list[str]) -> None:
    assert select_tests([Path(changed)], project) == [Path(test) for test in tests]


def test_changed_is_what_the_branch_and_the_working_tree_have_made_of_main(project: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=project, check=True, capture_output=True)

    def commit(name: str) -> None:
        (project / name).write_text("changed")
        git("add", "--all")
        git("commit", "--message", name)

    (project / ".gitignore").write_text("*.log")
    git("init", "--initial-branch", "main")
    commit("tlora/results.py")
    assert changed_files(project) == []
    git("switch", "--create", "branch")
    commit("tlora/adapters/attach.py")
    git("switch", "main")
    commit("tlora/adapters/lora_layers.py")  # on main alone
    git("switch", "branch")
    for name in ("tlora/results.py", "viz/a new file.py", "viz/ignored.log"):
        (project / name).write_text("in the working tree")
    (project / "tests/unit/test_init.py").unlink()
    git("add", "tlora/results.py")
    names = ["tests/unit/test_init.py", "tlora/adapters/attach.py", "tlora/results.py", "viz/a new file.py"]
    assert changed_files(project) == [Path(name) for name in names]

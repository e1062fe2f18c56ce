"""The docs say what the code does."""

import re
import subprocess
import sys
from pathlib import Path


def test_reference_pages_follow_from_the_code(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}\nrun `python docs/generate.py` and commit"


def test_links_between_pages_lead_somewhere(project: Path) -> None:
    broken = []
    for page in [project / "README.md", *(project / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(project)} → {target}")
    assert broken == []


def test_every_test_that_a_page_names_exists(project: Path) -> None:
    source = "\n".join(path.read_text() for path in (project / "tests").rglob("test_*.py"))
    made = set(re.findall(r"def (test_\w+)\(", source))
    for page in (project / "docs").rglob("*.md"):
        named = set(re.findall(r"`(test_[a-z0-9_]+)`", page.read_text()))
        assert named <= made, f"{page.relative_to(project)} names {sorted(named - made)}"

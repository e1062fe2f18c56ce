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

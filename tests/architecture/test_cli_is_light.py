"""`leitstand --help` must not import anything heavy: that, not the clock, is what makes it fast."""

import subprocess
import sys

HEAVY = ["torch", "transformers", "prefect", "bentoml", "wandb", "mlflow", "pandas", "numpy", "great_expectations",
    "evidently", "openvino", "boto3", "sklearn"]  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['leitstand', '--help']\n"
        "from leitstand.cli import app\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "lifecycle" in done.stdout

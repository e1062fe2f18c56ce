"""Alibi-Detect's default decisions (p < 0.05) on windows of embeddings; runs with the Python that has it.

Its MMD keeps the whole kernel, so it gets the first 1,000 rows of the reference.

python drift_alibi.py WINDOWS_NPZ RESULT_JSON
"""

import json
import sys
import warnings

import numpy as np
from alibi_detect.cd import KSDrift, MMDDrift

warnings.filterwarnings("ignore")
arrays = np.load(sys.argv[1])
detectors = {
    held: {
        "alibi MMD": MMDDrift(arrays[f"reference{held}"][:1000].astype(np.float32), backend="pytorch"),
        "alibi KS": KSDrift(arrays[f"reference{held}"].astype(np.float32), p_val=0.05),
    }
    for held in ("0", "12")
}
votes: dict[str, dict[str, list[bool]]] = {}
for key in arrays.files:
    if "|" in key:
        name, held, _ = key.split("|")
        for who, detector in detectors[held].items():
            found = detector.predict(arrays[key].astype(np.float32))
            votes.setdefault(name, {}).setdefault(who, []).append(bool(found["data"]["is_drift"]))
with open(sys.argv[2], "w") as file:
    json.dump(votes, file)

"""What a program says of folders, a line of JSON each; runs in environments without this project."""

import gc
import json
import sys
from pathlib import Path


def write_answers(said):
    """Write `said` of each folder on the command line and the prompts before them, or its error."""
    prompts = json.loads(Path(sys.argv[1]).read_text())
    for folder in sys.argv[2:]:
        try:
            answer = said(folder, prompts)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        gc.collect()
        print(json.dumps({"folder": folder, **answer}), flush=True)

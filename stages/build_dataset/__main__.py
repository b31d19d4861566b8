"""Door: stage `build-dataset`.  Run: python -m stages.build_dataset"""

from stages.stage import main

INPUTS = (
    "sample/architectures.json",
    "evaluate/context.json",
    "evaluate/curvature.json",
    "evaluate/importance.safetensors",
    "evaluate/journal.jsonl",
)

if __name__ == "__main__":
    main("build-dataset", "stages.build_dataset.stage:run", INPUTS)

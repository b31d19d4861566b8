"""Door: stage `search`.  Run: python -m stages.search"""

from stages.stage import main

INPUTS = (
    "sample/architectures.json",
    "evaluate/context.json",
    "evaluate/conversations.json",
    "evaluate/importance.safetensors",
    "build_dataset/damage.json",
    "build_dataset/pairs.parquet",
    "train_predictor/predictor",
)

if __name__ == "__main__":
    main("search", "stages.search.stage:run", INPUTS)

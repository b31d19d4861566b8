"""Door: stage `train-predictor`.  Run: python -m stages.train_predictor"""

from stages.stage import main

INPUTS = (
    "sample/architectures.json",
    "evaluate/importance.safetensors",
    "build_dataset/damage.json",
    "build_dataset/pairs.parquet",
)

if __name__ == "__main__":
    main("train-predictor", "stages.train_predictor.stage:run", INPUTS)

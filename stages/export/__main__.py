"""Door: stage `export`.  Run: python -m stages.export"""

from stages.stage import main

INPUTS = (
    "sample/architectures.json",
    "evaluate/conversations.json",
    "evaluate/division.json",
    "evaluate/importance.safetensors",
    "train_predictor/ablation.csv",
    "train_predictor/comparison.csv",
    "train_predictor/forecasts.csv",
    "train_predictor/metrics.json",
    "search/context.json",
    "search/course.csv",
    "search/explained.csv",
    "search/front.csv",
    "search/narrowed_space.json",
    "search/outcome.json",
    "search/rounds.csv",
    "search/trials.csv",
)

if __name__ == "__main__":
    main("export", "stages.export.stage:run", INPUTS)

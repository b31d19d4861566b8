"""Door: stage `evaluate`.  Run: python -m stages.evaluate"""

from stages.stage import main

INPUTS = ("sample/architectures.json",)

if __name__ == "__main__":
    main("evaluate", "stages.evaluate.stage:run", INPUTS)

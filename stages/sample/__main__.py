"""Door: stage `sample`.  Run: python -m stages.sample"""

from stages.stage import main

if __name__ == "__main__":
    main("sample", "stages.sample.stage:run")

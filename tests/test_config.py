"""Recipes, overrides, saved records, the scientific hash, and what may change when a run goes on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from research import config
from research.errors import UserError
from research.settings import Key, Settings, keys, setting
from tests.small import assert_one_sentence

KEYS = [key for key in config.KEYS.values() if len(key.metadata["choices"]) != 1]
SCIENTIFIC = [key for key in KEYS if not key.metadata["execution"]]
EXECUTION = [key for key in KEYS if key.metadata["execution"]]
DEFAULTS = Settings()


def named(key: Key) -> str:
    return key.name


def other(key: Key) -> Any:
    """A value of the key that is not its default and contradicts no other key."""
    special = {
        "data.source": "text",
        "model.num_heads": 8,
        "model.num_kv_heads": 2,
        "model.embed_dim": 256,
        "model.head_dim": 64,
        "model.architecture": "mlp",
        "model.rotary_factor": 2.0,
        "model.num_experts": 8,
        "model.norm_position": "both",
        "model.attention_period": "gg",
        "objective.mask_token_rate": 0.5,
        "optimizer.groups": "head=0.5",
        "train.accumulation": 2,
        "parallel.num_processes": 2,
        "parallel.process_id": 1,
    }
    metadata = key.metadata
    if key.name in special:
        return special[key.name]
    if metadata["choices"]:
        return next(choice for choice in metadata["choices"] if choice != key.default)
    if bool in key.types:
        return not key.default
    if str in key.types:
        return "elsewhere"
    if float in key.types:
        return (
            max(0.25, metadata["minimum"]) if key.default is None else (key.default + metadata["minimum"]) / 2 or 0.25
        )
    return 2 * max(1, key.default or metadata["minimum"] or 0)


def with_other(key: Key) -> dict[str, Any]:
    """Changes that set the key to another value, with what that value needs beside it."""
    beside: dict[str, dict[str, Any]] = {
        "data.source": {"data.path": "there"},
        "model.pair_head": {"model.pooler": True},
        "model.parametrisation": {"model.base_width": 128},
        "model.depth_scaling": {"model.base_depth": 4},
        "optimizer.momentum": {"optimizer.name": "sgd"},
        "optimizer.nesterov": {"optimizer.name": "sgd"},
        "optimizer.muon_scale": {"optimizer.name": "muon"},
        "optimizer.muon_steps": {"optimizer.name": "muon"},
        "train.noise_scale": {"train.accumulation": 2},
    }
    return {key.name: other(key), **beside.get(key.name, {})}


# --- records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_a_record_carries_every_key_through_json(key: Key) -> None:
    settings = config.from_nested(with_other(key))
    assert settings[key.name] == other(key) != key.default
    again = config.from_record(json.loads(json.dumps(config.to_record(settings), allow_nan=False)))
    assert again == settings
    assert type(again[key.name]) is type(other(key))


def test_a_record_holds_every_key_once() -> None:
    record = config.to_record(DEFAULTS)
    assert list(config._flat(record["settings"])) == list(config.KEYS)
    assert record["schema_version"] == config.SCHEMA_VERSION


@pytest.mark.parametrize("record", [None, [], "text", {}, {"settings": {}}, {"schema_version": "1", "settings": {}}])
@pytest.mark.parametrize("version", [None, 0, -1])
def test_what_is_no_record_is_refused(record: Any, version: int | None) -> None:
    if version is not None:
        record = {"schema_version": version, "settings": {}}
    with pytest.raises(UserError) as caught:
        config.from_record(record)
    assert_one_sentence(str(caught.value), "schema_version")


def test_a_record_of_a_newer_program_is_refused() -> None:
    record = config.to_record(DEFAULTS) | {"schema_version": config.SCHEMA_VERSION + 1}
    with pytest.raises(UserError, match="update Isoflop"):
        config.from_record(record)


def test_migrations_are_applied_in_order_from_the_records_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SCHEMA_VERSION", 4)
    applied = []

    def migration(version: int) -> Any:
        def migrate(values: dict[str, Any]) -> dict[str, Any]:
            applied.append(version)
            return {**values, "seed": values.get("seed", 0) * 10 + version}

        return migrate

    table = {version: migration(version) for version in (3, 1, 2)}
    assert config.from_record({"schema_version": 1, "settings": {"seed": 9}}, table).seed == 9123
    assert applied == [1, 2, 3]
    assert config.from_record({"schema_version": 3, "settings": {}}, table).seed == 3
    assert config.from_record({"schema_version": 4, "settings": {"seed": 5}}, table).seed == 5


def test_every_older_schema_version_has_a_migration() -> None:
    assert sorted(config.MIGRATIONS) == list(range(1, config.SCHEMA_VERSION))
    assert all(1 <= key.metadata["since"] <= config.SCHEMA_VERSION for key in KEYS)


# --- unknown keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("train.num_step", "train.num_steps"),
        ("train.batchsize", "train.batch_size"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("num_layers", "model.num_layers"),
        ("mesh.fsdp", "parallel.mesh.fsdp"),
        ("model.mask_rate", "objective.mask_rate"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(typed: str, nearest: str) -> None:
    attempts = (
        lambda: config.override(config.default_config(), typed, "1"),
        lambda: config.from_nested({typed: 1}),
        lambda: config.from_nested(config._nested({typed: 1})),
    )
    for attempt in attempts:
        with pytest.raises(UserError) as caught:
            attempt()
        assert_one_sentence(str(caught.value), typed, f"did you mean {nearest}?")


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_one_wrong_letter_finds_the_key(key: Key) -> None:
    assert f"did you mean {key.name}?" in str(config.unknown_key(key.name + "ß"))


def test_a_key_like_no_other_is_refused_with_where_to_look() -> None:
    assert_one_sentence(str(config.unknown_key("xyzzy")), "xyzzy", "--help")


# --- overrides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_every_key_can_be_typed(key: Key) -> None:
    recipe = config.default_config()
    value = other(key)
    for name, typed in with_other(key).items():
        config.override(recipe, name, str(typed).lower() if isinstance(typed, bool) else str(typed))
    assert config.to_settings(_with_path(recipe))[key.name] == value
    if type(None) in key.types:
        for text in ("none", "None", "null"):
            config.override(recipe, key.name, text)
            assert config.to_settings(recipe)[key.name] is None


def _with_path(recipe: Any) -> Any:
    if recipe.data.source != "docstrings":
        recipe.data.path = "there"
    recipe.model.pooler = recipe.model.pooler or recipe.model.pair_head
    return recipe


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.num_steps", "1e4", 10_000),
        ("train.num_steps", " 12 ", 12),
        ("train.num_steps", "1_000", 1000),
        ("data.num_tokens", "1.5E9", 1_500_000_000),
        ("data.num_tokens", "2.0", 2),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("data.deduplicate", "False", False),
        ("data.deduplicate", "TRUE", True),
        ("data.path", "none", "none"),
        ("data.path", "1e4", "1e4"),
        ("data.path", " with spaces.txt", " with spaces.txt"),
        ("parallel.mesh.fsdp", "-1", -1),
    ],
)
def test_what_is_typed_becomes_the_keys_type(name: str, text: str, value: Any) -> None:
    parsed = config.parse_value(config.KEYS[name], text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.num_steps", "many"),
        ("train.num_steps", "1.5"),
        ("train.num_steps", "1e-4"),
        ("train.num_steps", "none"),
        ("train.num_steps", ""),
        ("train.num_steps", "nan"),
        ("train.num_steps", "inf"),
        ("train.num_steps", "0"),
        ("seed", "1e30"),
        ("seed", "9" * 30),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.learning_rate", "inf"),
        ("optimizer.learning_rate", "9" * 400),
        ("optimizer.learning_rate", "-1e-3"),
        ("optimizer.learning_rate", "none"),
        ("data.deduplicate", "1"),
        ("data.deduplicate", "yes"),
        ("data.deduplicate", "none"),
        ("parallel.preset", "fdsp"),
        ("parallel.mesh.fsdp", "-2"),
        ("model.dropout", "1.0"),
    ],
)
def test_what_cannot_be_the_keys_value_is_refused_and_changes_nothing(name: str, text: str) -> None:
    recipe = config.default_config()
    with pytest.raises(UserError) as caught:
        config.override(recipe, name, text)
    assert_one_sentence(str(caught.value).replace(text, "…") if len(text) > 99 else str(caught.value), name)
    assert config.to_settings(recipe) == DEFAULTS


# --- recipes ------------------------------------------------------------------------------------------------------


def test_the_defaults_live_in_the_settings_alone() -> None:
    assert config.to_settings(config.default_config()) == DEFAULTS
    assert config.from_nested({}) == DEFAULTS


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_a_recipe_cannot_set_a_key_that_does_not_exist(key: Key) -> None:
    *rooms, last = key.name.split(".")
    node = config.default_config()
    for room in rooms:
        node = node[room]
    with pytest.raises((KeyError, AttributeError)):
        node[last + "_"] = 1


def recipe_file(directory: Path, body: str, name: str = "mine.py") -> str:
    path = directory / name
    lines = "\n    ".join(body.splitlines())
    path.write_text(
        f"from research import config\n\n\ndef get_config({'size=None' if 'size' in body else ''}):\n"
        f"    c = config.default_config()\n    {lines}\n    return c\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("body", "mentioned"),
    [
        ("c.train.num_step = 3", "did you mean train.num_steps?"),
        ("c.train.num_steps = 'many'", "num_steps=many: expected int"),
        ("c.train.num_steps = 1.5", "num_steps=1.5: expected int"),
        ("c.optimizer['rate'] = 3", "rate"),
        ("c.model.update(layers=3)", "did you mean model.num_layers?"),
        ("c.model.layers += 1", "did you mean model.num_layers?"),
    ],
)
def test_a_recipe_that_sets_what_it_cannot_is_one_sentence(tmp_path: Path, body: str, mentioned: str) -> None:
    file = recipe_file(tmp_path, body)
    with pytest.raises(UserError) as caught:
        config.load_recipe(file)
    assert_one_sentence(str(caught.value), f"--config={file}", mentioned)


def test_a_recipe_is_found_by_its_file_and_may_take_an_argument(tmp_path: Path) -> None:
    plain = recipe_file(tmp_path, "c.seed = 3")
    sized = recipe_file(tmp_path, "c.train.num_steps = 7 if size is None else int(size)", "sized.py")
    assert config.to_settings(config.load_recipe(plain)).seed == 3
    assert config.to_settings(config.load_recipe(plain.removesuffix(".py"))).seed == 3
    assert config.to_settings(config.load_recipe(sized)).train.num_steps == 7
    assert config.to_settings(config.load_recipe(f"{sized}:9")).train.num_steps == 9
    with pytest.raises(UserError, match="takes no argument, drop `:9`"):
        config.load_recipe(f"{plain}:9")


@pytest.mark.parametrize("name", ["absent.py", "absent", "absent.json", "absent.py:125m", "configs"])
def test_a_recipe_that_is_not_there_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config.load_recipe(str(tmp_path / name))
    assert_one_sentence(str(caught.value), "there is no file")


def test_a_recipe_without_a_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no function get_config"):
        config.load_recipe(str(tmp_path / "empty.py"))


def test_a_saved_record_starts_a_run_again_and_takes_overrides(tmp_path: Path) -> None:
    # A plain MLP has no place for experts.
    values = {key.name: other(key) for key in KEYS} | {"data.path": "there", "model.architecture": "transformer"}
    # The rule is another than muon, and one that has no steps under mup.
    left_out = ("optimizer.muon", "model.parametrisation", "model.base_", "model.depth_scaling")
    values = {name: value for name, value in values.items() if not name.startswith(left_out)}
    settings = config.from_nested(values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_record(settings) | {"provenance": {"commit": "abc"}}))
    again = config.load_recipe(str(path))
    assert config.to_settings(again) == settings
    config.override(again, "model.num_kv_heads", "none")
    config.override(again, "train.num_steps", "5000")
    expected = config.from_nested(values | {"model.num_kv_heads": None, "train.num_steps": 5000})
    assert config.to_settings(again) == expected


@pytest.mark.parametrize("text", ['{"schema_version": 1, "settings": {', "[]", "\udcff", '{"schema_version": 1}'])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        config.load_recipe(str(path))
    assert_one_sentence(str(caught.value))


# --- identity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SCIENTIFIC, ids=named)
def test_every_scientific_key_changes_the_hash(key: Key) -> None:
    beside = {name: value for name, value in with_other(key).items() if name != key.name}
    names = {config.scientific_hash(config.from_nested(changes)) for changes in ({}, beside, with_other(key))}
    assert len(names) == (3 if beside else 2)


def test_execution_keys_leave_the_hash_alone() -> None:
    settings = config.from_nested({key.name: other(key) for key in EXECUTION})
    assert len(config.differences(DEFAULTS, settings)) == len(EXECUTION)
    assert config.scientific_hash(settings) == config.scientific_hash(DEFAULTS)


def test_a_later_key_at_its_default_leaves_older_hashes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(Settings):
        later: int = setting(3, "a key that version 2 brought", minimum=0, since=2)
        first: int = setting(3, "a key that was always there", minimum=0)

    before = config.scientific_hash(Later())
    every = {key.name: key for key in keys(Later)}
    monkeypatch.setattr(config, "KEYS", {name: key for name, key in every.items() if name != "first"})
    assert config.scientific_hash(Later()) == before
    assert config.scientific_hash(Later(later=4)) != before
    monkeypatch.setattr(config, "KEYS", every)
    assert config.scientific_hash(Later()) != before


# --- resuming -----------------------------------------------------------------------------------------------------


def test_execution_keys_may_change_at_resume() -> None:
    config.check_resume(DEFAULTS, DEFAULTS)
    config.check_resume(DEFAULTS, config.from_nested({key.name: other(key) for key in EXECUTION}))


def test_paths_may_change_at_resume_since_the_data_hash_names_the_content() -> None:
    config.check_resume(DEFAULTS, config.from_nested({"data.path": "moved", "tokenizer.path": "moved"}))


@pytest.mark.parametrize("key", [key for key in SCIENTIFIC if not key.name.endswith(".path")], ids=named)
def test_scientific_keys_may_not_change_at_resume(key: Key) -> None:
    with pytest.raises(UserError) as caught:
        config.check_resume(DEFAULTS, config.from_nested(with_other(key)))
    assert_one_sentence(str(caught.value), f"{key.name} was {key.default!r}, now {other(key)!r}", "--workdir")


@pytest.mark.parametrize(
    ("schedule", "warmup", "allowed"),
    [
        ("constant", 10, True),
        ("wsd", 10, True),
        ("cosine", 10, False),
        ("linear", 10, False),
        ("constant", None, False),  # 5 % of the run: another length is another warm-up
        ("wsd", None, False),
    ],
)
def test_the_length_may_change_where_the_schedule_so_far_stays(
    schedule: str, warmup: int | None, allowed: bool
) -> None:
    def of(num_steps: int, **changes: Any) -> Settings:
        keyed = {f"optimizer.{name}": value for name, value in changes.items()}
        return config.from_nested(
            {
                "train.num_steps": num_steps,
                "optimizer.schedule": schedule,
                "optimizer.warmup_steps": warmup,
                **keyed,
            }
        )

    for length in (500, 2000):
        if allowed:
            config.check_resume(of(1000), of(length))
            with pytest.raises(UserError, match=r"optimizer\.learning_rate"):
                config.check_resume(of(1000), of(length, learning_rate=1e-2))
            with pytest.raises(UserError, match=r"optimizer\.warmup_steps was 10, now 11"):
                config.check_resume(of(1000), of(length, warmup_steps=11))
        else:
            with pytest.raises(UserError, match=r"train\.num_steps"):
                config.check_resume(of(1000), of(length))


def test_a_length_may_not_undo_what_was_done() -> None:
    def of(num_steps: int, schedule: str, warmup: int | None = 10) -> Settings:
        return config.from_nested(
            {"train.num_steps": num_steps, "optimizer.schedule": schedule, "optimizer.warmup_steps": warmup}
        )

    config.check_resume(of(1000, "constant"), of(500, "constant"), reached=500)
    with pytest.raises(UserError, match=r"train\.num_steps=500, but this run has 501 updates"):
        config.check_resume(of(1000, "constant"), of(500, "constant"), reached=501)
    # The decay of 1000 updates begins at 800, that of 2000 at 1600.
    config.check_resume(of(1000, "wsd"), of(2000, "wsd"), reached=800)
    with pytest.raises(UserError, match="decay"):
        config.check_resume(of(1000, "wsd"), of(2000, "wsd"), reached=801)
    # A warm-up that was left to follow from the length can be kept by naming it.
    with pytest.raises(UserError, match=r"set optimizer\.warmup_steps=50"):
        config.check_resume(of(1000, "constant", None), of(2000, "constant", None), reached=100)
    config.check_resume(of(1000, "constant", None), of(2000, "constant", 50), reached=100)

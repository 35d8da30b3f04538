"""Options of policies: given as a text, an object's arguments or an old name, checked, and kept by the event log."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from longspan.config import SchedulerConfig
from longspan.core.news import News
from longspan.core.policies import (
    ALIASES,
    MOVED_SETTINGS,
    POLICIES,
    create_policy,
    policy_class,
    policy_text,
    told_of_alias,
)
from longspan.core.policies.base import Policy, check_policy
from longspan.core.policies.distserve import DistServe
from longspan.core.policies.loongserve.policy import LoongServe
from longspan.core.policies.medha.policy import Medha
from longspan.core.policies.options import format_policy, options_of, parse_policy
from longspan.core.policies.vllm import Vllm
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay

from .cost_models import scaling_model
from .driver import Driver
from .settings import EVERY_POLICY

OPTIONS = [(policy, field.name) for policy in sorted(POLICIES) for field in fields(policy_class(policy).Options)]


class Everything(Policy):
    """With options of all types."""

    @dataclass(frozen=True)
    class Options(Policy.Options):
        """Of all types."""

        number: int = 3
        share: float = 0.5
        switch: bool = True
        word: str = "a"
        kind: Literal["plain", "odd"] = "plain"
        perhaps: int | None = None

    name = "everything"
    options: Options

    def schedule(self, state: SchedulerState, news: News, now: float) -> None: ...


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_policy_is_written_as_it_is_read(policy: str) -> None:
    plain = create_policy(policy)
    assert policy_text(plain) == policy
    full = format_policy(policy, options_of(plain))
    assert create_policy(full).options == plain.options
    assert policy_text(create_policy(full)) == policy


@pytest.mark.parametrize(("policy", "option"), OPTIONS)
def test_an_option_is_explained_and_checked(policy: str, option: str) -> None:
    kinds = [kind for kind in policy_class(policy).mro() if option in vars(kind).get("Options", Policy).__annotations__]
    assert f"{option}: " in (kinds[-1].Options.__doc__ or "")  # type: ignore[attr-defined]  # mro() says `type`
    with pytest.raises(ConfigError, match=rf"policy {policy}: {option} is 'x', but must be .*defaults, are .*{option}"):
        create_policy(f"{policy}:{option}=x")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("medha:max_fixed_share=1", "max_fixed_share"), ("medha:max_fixed_share=nan", "max_fixed_share"),
        ("longspan:least_share=1", "least_share"), ("longspan:at_risk_share=-0.1", "at_risk_share"),
        ("medha:least_share=nan", "least_share"), ("longspan:at_risk_share=none", "at_risk_share"),
        ("medha:max_space_share=1.0", "max_space_share"), ("medha:kvp_tokens_per_shard=0", "kvp_tokens_per_shard"),
        ("edf:max_fixed_share=0", "max_fixed_share"), ("sarathi:chunk_size=0", "chunk_size"),
        ("sarathi:kvp_tokens_per_shard=-1", "kvp_tokens_per_shard"), ("splitfuse:chunk_size=1.5", "chunk_size"),
        ("splitfuse:chunk_size=99999999999999999999", "chunk_size"), ("vllm:token_budget=0", "token_budget"),
        ("ssjf:token_budget=0", "token_budget"), ("ssjf:starvation_s=-1", "starvation_s"),
        ("fastserve:ratio=1", "ratio"), ("fastserve:quantum_s=0", "quantum_s"), ("loongserve:scale_up=yes", "scale_up"),
        ("loongserve:objective=fun", "objective"), ("loongserve:max_masters=0", "max_masters"),
        ("distserve:prefill_instances=0", "prefill_instances"), ("alise:starvation_s=1", "there is no option starva"),
        ("qoserve:alpha_low=-1", "alpha_low"), ("qoserve:alpha_high=nan", "alpha_high"),
        ("qoserve:full_load_s=0", "full_load_s"), ("qoserve:largest_chunk=0", "largest_chunk"),
        ("preflow:age_priority_double=0", "age_priority_double"), ("fsp:weight_step=0.5", "weight_step"),
        ("static_tp:chunk_size=1", "there is no option chunk_size; it has no options"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy {text.partition(':')[0]}: {option}"):
        create_policy(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("medha:", "options are written as in"), ("medha:=3", "options are written as in"),
        ("medha:max_space_share=0.1:max-space-share=0.2", "says max_space_share twice"),
        ("medha:max_space_share", "policy medha: its option max_space_share has no value"),
        ("loongserv", "did you mean loongserve?"), ("", "there is no policy ''"), ("a b:C", "cannot be imported"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        create_policy(text)


def test_options_of_all_types_are_read_from_texts_and_values() -> None:
    text = "number=-4:share=1e-3:switch=false:word=b c:kind=odd:perhaps=7"
    _, given = parse_policy(f"everything:{text}")
    policy = Everything(**given)
    assert policy.options == Everything.Options(-4, 1e-3, False, "b c", "odd", 7)
    assert Everything(**options_of(policy)).options == policy.options
    assert Everything(share=1).options.share == 1.0
    assert policy_text(policy) == f"everything:{text}".replace("1e-3", "0.001")
    assert Everything(perhaps="none").options.perhaps is None
    wrong: list[dict[str, Any]] = [
        {"number": True}, {"number": 1.0}, {"number": [3]}, {"number": "9" * 5000}, {"share": "x"}, {"share": None},
        {"share": 10**400}, {"switch": 1}, {"word": 3}, {"kind": "even"}, {"perhaps": 1.5},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError, match=f"policy everything: {next(iter(options))} is"):
            Everything(**options)
    with pytest.raises(ConfigError, match="without a colon"):
        policy_text(Everything(word="a:b"))


def test_objects_take_options_as_arguments() -> None:
    assert Medha(max_space_share=0.1).max_space_share == 0.1
    assert DistServe(prefill_instances=3).options.prefill_instances == 3
    with pytest.raises(ConfigError, match=r"there is no option max_masterz; its options.*max_masters \(none\)"):
        LoongServe(max_masterz=3)


@pytest.mark.parametrize("name", ALIASES)
def test_old_names_are_options_and_told(name: str) -> None:
    policy = create_policy(name)
    assert (policy.name, policy_text(policy)) == ("loongserve", ALIASES[name])
    assert told_of_alias(f"{name}:objective=normalised") == f"the policy {name} is written {ALIASES[name]} now"
    assert options_of(create_policy(f"{name}:objective=normalised")) == options_of(policy) | {"objective": "normalised"}
    assert told_of_alias("loongserve:scale_up=false") is None


def test_moved_settings_are_options_of_the_policies_that_they_name() -> None:
    for setting, written in MOVED_SETTINGS.items():
        for text in written.split(" or "):
            assert setting in options_of(create_policy(text))


# in the event log


def a_run(config: SchedulerConfig, policy: Policy | None = None) -> Driver:
    driver = Driver(config, policy, seed=3, cost_model=scaling_model(config.num_instances))
    for number in range(30):
        driver.arrive(5 + 7 * (number % 9), 1 + number % 11)
        if number % 2:
            driver.complete()
    driver.finish()
    return driver


def logged(path: Path, driver: Driver, config: SchedulerConfig, **options: Any) -> Path:
    with EventLogWriter(path, config, scaling_model(config.num_instances), waits=True, **options) as log:
        for now, event, actions in driver.log:
            log.write(now, event, actions)
    assert log.errors == 0
    return path


@pytest.mark.parametrize(
    "policy", [*EVERY_POLICY, "sarathi:chunk_size=9", "vllm:token_budget=20", "medha:max_space_share=0"]
)
def test_the_log_has_all_options_and_replays_with_them(policy: str, tmp_path: Path) -> None:
    config = SchedulerConfig(num_instances=2, kv_tokens=200, policy=policy, decode_headroom=2, max_batch_tokens=40)
    path = logged(tmp_path / "log", a_run(config), config)
    log = read_event_log(path)
    made = create_policy(policy)
    assert (log.policy, log.options, log.own_policy, log.notes) == (made.name, options_of(made), None, [])
    assert log.config == replace(config, policy=policy_text(made))
    assert replay(path) is None


def test_objects_with_options_replay_with_these(tmp_path: Path) -> None:
    """Also those of ours, which are known by their names."""
    config = SchedulerConfig(num_instances=1, kv_tokens=400, decode_headroom=2)
    driver = a_run(config, Vllm(token_budget=8))
    path = logged(tmp_path / "log", driver, config, policy=Vllm(token_budget=8))
    assert read_event_log(path).config.policy == "vllm:token_budget=8"
    assert replay(path) is None
    assert replay(path, Vllm()) is not None


@pytest.mark.parametrize(
    ("policy", "now", "notes"),
    [
        ("sarathi", "sarathi:kvp_tokens_per_shard=30:chunk_size=9",
         ["its option chunk_size is written sarathi:chunk_size=9 now",
          "its option kvp_tokens_per_shard is written sarathi:kvp_tokens_per_shard=30 now"]),
        ("medha", "medha:kvp_tokens_per_shard=30",
         ["its option kvp_tokens_per_shard is written medha:kvp_tokens_per_shard=30 now"]),
        ("splitfuse", "splitfuse:chunk_size=9", ["its option chunk_size is written splitfuse:chunk_size=9 now"]),
        ("vllm", "vllm", []),
        ("loongserve_reactive", "loongserve:scale_down=reactive",
         ["its policy loongserve_reactive is written loongserve:scale_down=reactive now"]),
        ("one of my own", "one of my own", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [1, 2])
def test_logs_from_when_all_policies_had_the_same_options(
    policy: str, now: str, notes: list[str], version: int, tmp_path: Path
) -> None:
    """These, the chunks' size among them, were in the config, whoever decided."""
    config = {"num_instances": 2, "kv_tokens": 200, "policy": policy, "chunk_size": 9, "kvp_tokens_per_shard": 30,
              "max_fixed_share": 0.8, "max_space_share": 0.4, "decode_headroom": 2}  # fmt: skip
    header = {"version": version, "config": config} | ({"policy": policy, "run": "r"} if version == 2 else {})
    (tmp_path / "log").write_text(json.dumps(header) + "\n")
    log = read_event_log(tmp_path / "log")
    assert log.config == SchedulerConfig(num_instances=2, kv_tokens=200, decode_headroom=2, policy=now)
    assert (log.policy, log.notes) == (now.partition(":")[0], notes)


# one's own


class Duck:
    """Extends nothing, and has all that is asked for."""

    name, needs_cost_model, keeps_on_one_instance = "duck", False, True

    def schedule(self, state: SchedulerState, news: News, now: float) -> None: ...

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return True


def test_what_extends_nothing_will_do_if_it_has_all_that_is_asked_for() -> None:
    check_policy(Duck())
    assert options_of(Duck()) == {}
    with pytest.raises(ConfigError, match="is a class; give an object of it"):
        check_policy(Duck)
    with pytest.raises(ConfigError, match="lacks name, needs_cost_model, keeps_on_one_instance"):
        check_policy(type("Half", (), {"schedule": Duck.schedule})())


# What follows breaks the signatures that types ask for, on purpose: it must be told at run time, too.


class OldDuck(Duck):
    def schedule(self, state: SchedulerState, now: float) -> None: ...  # type: ignore[override]


def test_one_that_is_called_otherwise_is_refused_with_what_it_must_take() -> None:
    with pytest.raises(ConfigError, match=r"duck is called as schedule\(state, news, now\), which it does not take"):
        check_policy(OldDuck())


def test_all_of_ours_extend_the_base_class() -> None:
    assert all(issubclass(policy_class(name), Policy) for name in POLICIES)


class Careless(Everything):
    """With mistakes that are easily made."""

    def __init__(self) -> None:
        self.seen = 0


class Forgetful(Everything):
    def __init__(self, **options: object) -> None:
        self.seen = 0


class Picky(Everything):
    @dataclass(frozen=True)
    class Options(Everything.Options):
        """Of all types."""

        def __post_init__(self) -> None:
            if self.number < 1:
                raise ValueError("number must be at least 1")


class Nameless(Policy):
    def schedule(self, state: SchedulerState, news: News, now: float) -> None: ...


class Unfinished(Policy):
    name = "unfinished"


class Old(Everything):
    def schedule(self, state: SchedulerState, now: float) -> None: ...  # type: ignore[override]


class Later(Everything):
    async def schedule(self, state: SchedulerState, news: News, now: float) -> None: ...  # type: ignore[override]


class Settled(Everything):
    looks_ahead = True  # type: ignore[assignment]


class Loose(Everything):
    @dataclass(frozen=True)
    class Options(Policy.Options):
        """Lacks a default."""

        number: int


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("Careless:number=4", r"takes \*\*options and hands them to super"),
        ("Forgetful", r"takes \*\*options and hands them to super"),
        ("Picky:number=0", r"number must be at least 1; its options, and their defaults, are number \(3\)"),
        ("Nameless", "has no name"),
        ("Unfinished", "cannot be made .*abstract"),
        ("Old", r"called as schedule\(state, news, now\)"),
        ("Later", "its schedule must be a plain function"),
        ("Settled", r"called as looks_ahead\(state, now\)"),
        ("Loose", "number"),
    ],
)
def test_mistakes_of_ones_own_are_told_in_a_line(policy: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        create_policy(f"{__name__}:{policy}")


def test_a_module_that_ends_the_program_is_told_as_one_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_at_once.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="its module cannot be imported"):
        create_policy("ends_at_once:Policy")

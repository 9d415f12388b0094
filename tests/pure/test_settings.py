"""Settings: which source wins, and errors in the words of whoever wrote them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guestnet.errors import ConfigError
from guestnet.model import NetworkSpec, Topology
from guestnet.settings import CONFIG_VARIABLE, VARIABLES, Settings

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "guestnet.toml"


def refusal(environ: dict[str, str] | None = None, **options: str | Path) -> str:
    """What loading (and reading the networks of) these settings says."""
    with pytest.raises(ConfigError) as caught:
        _ = Settings.load(environ or {}, config=options.pop("config", None), **options).networks
    return str(caught.value)


def written(config: Path, text: str) -> str:
    config.write_text(text)
    return refusal(config=config)


def test_defaults() -> None:
    settings = Settings.load({}, rootless="off")
    assert settings.state_dir == Path("/var/lib/guestnet")
    assert settings.run_dir == Path("/run/guestnet")
    assert settings.socket == Path("/run/guestnet/guestnet.sock")
    assert (settings.site, settings.socket_group, settings.networks) == (None, None, ())


def test_without_root_defaults_are_the_user_s_own() -> None:
    xdg = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "HOME": "/h"}
    settings = Settings.load({**xdg, "GUESTNET_ROOTLESS": "on"})
    assert settings.rootless
    assert settings.state_dir == Path("/s/guestnet")
    assert settings.socket == Path("/r/guestnet/guestnet.sock")
    # What is not absolute does not count.
    settings = Settings.load({"XDG_STATE_HOME": "s", "HOME": "/h"}, rootless="on")
    assert settings.state_dir == Path("/h/.local/state/guestnet")
    assert not Settings.load(xdg, rootless="off").rootless


def test_rootless_is_on_or_off() -> None:
    assert refusal({"GUESTNET_ROOTLESS": "yes"}) == "GUESTNET_ROOTLESS='yes': is on or off"


def test_options_override_environment_overrides_file(config: Path) -> None:
    config.write_text('state_dir = "/file/s"\nrun_dir = "/file/r"\nsite = "file"\n')
    environ = {"GUESTNET_RUN_DIR": "/env/r", "GUESTNET_SITE": "env", CONFIG_VARIABLE: str(config)}
    settings = Settings.load(environ, site="option")
    assert settings.state_dir == Path("/file/s")
    assert settings.run_dir == Path("/env/r")
    assert settings.site == "option"
    assert settings.config == config


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}, run_dir="here").run_dir == tmp_path / "here"


@pytest.mark.parametrize(("text", "workers"), [("4", 4), ('"12"', 12), ("16", 16)])
def test_workers_of_the_gateway(config: Path, text: str, workers: int) -> None:
    config.write_text(f"gateway_workers = {text}\n")
    assert Settings.load({}, config=config).gateway_workers == workers
    environ = {"GUESTNET_GATEWAY_WORKERS": "2"}
    assert Settings.load(environ, config=config).gateway_workers == 2


@pytest.mark.parametrize("text", ["0", "17", "-1", "1.5", "true", '"many"', '"0161"', '"²"'])
def test_workers_are_a_number(config: Path, text: str) -> None:
    said = written(config, f"gateway_workers = {text}\n")
    assert "guestnet.toml: gateway_workers" in said
    if text != "true" and text != "1.5":
        assert "1 to 16" in said


def test_networks_come_from_tables(config: Path) -> None:
    config.write_text("""
        [network.ci]
        topology = "bridge"
        ipv4 = "10.9.0.0/24"
        ipv6 = "none"
        policy = "public  # the internet"
        [network.tenants]
        mtu = 1400
        [network.tenants.policy]
        profiles = ["public"]
        rules = ["deny@10.9.0.0/16"]
    """)
    ci, tenants = Settings.load({}, config=config).networks
    assert (ci.name, ci.topology, str(ci.ipv4), ci.ipv6) == (
        "ci", Topology.BRIDGE, "10.9.0.0/24", None,
    )  # fmt: skip
    assert ci.policy == "public  # the internet"
    assert tenants.policy == "allow@dns,allow@public,deny@10.9.0.0/16"


def test_records_and_resolvers_of_a_table(config: Path) -> None:
    config.write_text("""
        [network.ci]
        dns = ["tls://9.9.9.9#dns.quad9.net"]
        strip_ech = false
        [network.ci.records]
        "DB.internal.test" = ["10.0.0.5", "fd00::5"]
        "cache.internal.test" = "db.internal.test"
    """)
    (ci,) = Settings.load({}, config=config).networks
    assert (ci.dns, ci.strip_ech) == (("tls://9.9.9.9#dns.quad9.net",), False)
    assert {name: [*map(str, data)] for name, data in ci.records.items()} == {
        "db.internal.test": ["10.0.0.5", "fd00::5"],
        "cache.internal.test": ["db.internal.test"],
    }


def test_the_environment_overrides_the_default_network_alone(config: Path) -> None:
    config.write_text("[network.default]\nmtu = 1400\n[network.other]\nmtu = 1300\n")
    environ = {"GUESTNET_MTU": "1380", CONFIG_VARIABLE: str(config)}
    default, other = Settings.load(environ).networks
    assert (default.mtu, other.mtu) == (1380, 1300)


def test_a_bad_variable_of_the_default_network_is_named(config: Path) -> None:
    config.write_text("[network.default]\n")
    said = refusal({"GUESTNET_MTU": "70000"}, config=config)
    assert said.startswith("GUESTNET_MTU='70000'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[network.ci]\nmtu = 70000", "guestnet.toml: network.ci.mtu=70000: "),
        ('[network.ci.records]\n"a.test" = "1.2.3"', "guestnet.toml: network.ci.records.a.test="),
        ('[network.ci]\ndns = ["tls://x"]', "guestnet.toml: network.ci.dns.0='tls://x': "),
        ("[network.ci]\nmut = 1400", "guestnet.toml: network.ci.mut=1400: no such key"),
        ("[network.CI]", "guestnet.toml: network.CI.name='CI': "),
        ('[network.ci]\nname = "cj"', "guestnet.toml: network.ci.name='cj': "),
        ('[network.ci]\npolicy = "publik"', "guestnet.toml: network.ci.policy='publik': "),
        ("[network.ci.policy]\nrules = [1]", "guestnet.toml: network.ci.policy.rules[0]"),
        ("network.ci = 3", "guestnet.toml: network.ci=3: is a table"),
        ("network = 3", "guestnet.toml: network=3: networks are tables"),
        ("run_dri = '/x'", "guestnet.toml: run_dri='/x': no such key; did you mean 'run_dir'?"),
        ("run_dir = 3", "guestnet.toml: run_dir=3: is text"),
        ("run_dir = ' '", "guestnet.toml: run_dir=' ': is set but empty; unset it"),
        ("run_dir = ", "is not TOML: "),
    ],
)
def test_errors_in_a_file_name_it_and_the_key(config: Path, text: str, said: str) -> None:
    assert said in written(config, text)


def test_a_policy_error_points_at_the_character(config: Path) -> None:
    said = written(config, '[network.ci]\npolicy = "allow@dns,alow@any"')
    assert said.endswith("\n  allow@dns,alow@any\n            ^")


@pytest.mark.parametrize("variable", [*VARIABLES.values(), CONFIG_VARIABLE])
def test_an_empty_variable_is_an_error_that_names_it(variable: str) -> None:
    assert refusal({variable: ""}) == f"{variable}='': is set but empty; unset it"


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    for said in (refusal(config=missing), refusal({CONFIG_VARIABLE: str(missing)})):
        assert said == f"config='{missing}': No such file or directory"


def test_a_file_that_is_not_text(config: Path) -> None:
    config.write_bytes(b"run_dir = '\xff'")
    assert "is not UTF-8 at byte 11" in refusal(config=config)


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        _ = Settings.load({}, run_dir="/run/" + "x" * 100).socket


def test_the_documented_example_is_true(config: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.S)
    config.write_text(example)
    settings = Settings.load({}, config=config)
    assert {spec.name for spec in settings.networks} == {"default", "ci", "tenants"}


def test_every_setting_is_documented() -> None:
    text = DOCS.read_text()
    for word in (*VARIABLES, *VARIABLES.values(), CONFIG_VARIABLE, *NetworkSpec.model_fields):
        assert f"`{word}`" in text, word

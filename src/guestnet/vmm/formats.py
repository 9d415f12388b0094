"""The formats by name: each says an attachment as text to paste and as a value for programs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import ConfigError
from ..model import Attachment
from . import cloud_hypervisor, cloud_init, env, firecracker, kernel_args, libkrun, qemu


@dataclass(frozen=True, slots=True)
class Rendered:
    """An attachment in one format."""

    #: Ready to paste; no newline at its end.
    text: str
    #: Dicts, lists, strings, integers and booleans.
    data: object


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """One way to say an attachment.

    An option is on or off. An unknown one, or an attachment that cannot be said in this format, is
    a `ConfigError`.
    """

    name: str
    #: One line of help.
    about: str
    _data: Callable[..., object]
    #: `None`: the text is the data as JSON.
    _text: Callable[..., str] | None = None
    media_type: str = "text/plain"
    #: Names of the options and what they do.
    options: Mapping[str, str] = field(default_factory=dict)

    def data(self, attachment: Attachment, **options: bool) -> object:
        """The JSON-able value."""
        self._check(options)
        return self._data(attachment, **options)

    def text(self, attachment: Attachment, **options: bool) -> str:
        """The text to paste, without a newline at its end."""
        self._check(options)
        if self._text is None:
            return json.dumps(self._data(attachment, **options), indent=2)
        return self._text(attachment, **options)

    def _check(self, options: Mapping[str, bool]) -> None:
        for name, value in options.items():
            if name not in self.options:
                raise _unknown("option", name, f"options of {self.name}", self.options)
            if not isinstance(value, bool):
                raise ConfigError(name, value, f"an option of {self.name} is true or false")


_JSON = "application/json"
_ALL = (
    Format(
        "firecracker",
        "body of PUT /network-interfaces/{iface_id}",
        firecracker.network_interface,
        media_type=_JSON,
        options={"mtu": "advertise the MTU, on by default; off for Firecracker before 1.16"},
    ),
    Format(
        "firecracker-snapshot",
        "network_overrides in the body of PUT /snapshot/load",
        firecracker.network_overrides,
        media_type=_JSON,
    ),
    Format(
        "cloud-hypervisor",
        "--net argument; as data, the body of PUT /vm.add-net",
        cloud_hypervisor.net_config,
        cloud_hypervisor.net_argument,
    ),
    Format(
        "qemu",
        "-netdev and -device arguments",
        qemu.arguments,
        qemu.command_line,
        options={
            "mmio": "virtio-net-device, for machines without PCI as microvm",
            "vhost": "packets move in the host's kernel; needs /dev/vhost-net",
            "reconnect": "of the transport stream: connect anew when cut; needs QEMU 9.2",
        },
    ),
    Format(
        "libkrun",
        "call of krun_add_net_tap (or _unixstream, _unixgram) in C; as data, its values",
        libkrun.add_net,
        libkrun.c_source,
    ),
    Format(
        "kernel-args",
        "the guest kernel's ip= argument (IPv4 only)",
        kernel_args.ip_argument,
        kernel_args.ip_argument,
        options={"dns": "append the first two IPv4 resolvers"},
    ),
    Format("env", "variables for the guest's init", env.variables, env.lines),
    Format(
        "cloud-init",
        "network-config version 2",
        cloud_init.network_config,
        cloud_init.yaml_text,
        media_type="application/yaml",
    ),
)

#: Every format by its name, in the order of help texts.
FORMATS: Mapping[str, Format] = MappingProxyType({entry.name: entry for entry in _ALL})


def format_named(name: str) -> Format:
    """The format called `name`; an unknown one is a `ConfigError` that names the choices."""
    try:
        return FORMATS[name]
    except KeyError:
        raise _unknown("format", name, "formats", FORMATS) from None


def render(attachment: Attachment, format: str, **options: bool) -> Rendered:
    """`attachment` in the format of that name, as text and as data."""
    chosen = format_named(format)
    return Rendered(chosen.text(attachment, **options), chosen.data(attachment, **options))


def _unknown(key: str, value: str, what: str, choices: Mapping[str, object]) -> ConfigError:
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(key, value, f"{hint}{what}: {', '.join(choices) or 'none'}")

# What the scripts share. Sourced, with the repository's root as the working directory.

readonly VENV=.venv
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

fail() {
    say "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

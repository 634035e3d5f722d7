#!/bin/sh
# Makes .venv from uv.lock; --dev adds what the tests need, --bench the peers to measure as well.
# Everything lands in this folder: no Python of the machine is changed. Any failure is one line and
# exit code 1.
set -eu
cd "$(dirname "$0")/.."

LOG=.uv/bootstrap.log
NO_ANSWER="The package registry did not answer: check the network or proxy, then repeat (details: $LOG)."
IS_SUPPORTED='import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 15))'

fail() {
    echo "Error: $1" >&2
    exit 1
}

# A candidate must really run: version managers put commands on PATH that only print an error.
find_python() {
    for candidate in python3.12 python3.13 python3.14 python3; do
        if "$candidate" -I -c "$IS_SUPPORTED" >/dev/null 2>&1; then
            "$candidate" -I -c 'import sys; print(sys.executable)'
            return
        fi
    done
    if command -v uv >/dev/null 2>&1; then
        uv python find --no-python-downloads --no-project '>=3.12,<3.15' 2>/dev/null || true
    fi
}

find_uv() {
    for candidate in .uv/env/bin/uv uv; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_uv() {
    echo "Installing uv into .uv/ ..."
    "$PYTHON" -m venv --clear .uv/env >"$LOG" 2>&1 ||
        fail "$PYTHON has no venv module. Install it (Debian: sudo apt-get install -y python3-venv) and repeat."
    env -u PIP_USER -u PIP_TARGET -u PYTHONPATH .uv/env/bin/python -m pip install \
        --quiet --retries 2 "uv>=0.9" >>"$LOG" 2>&1 || fail "uv could not be installed. $NO_ANSWER"
}

sync() {
    [ -x .venv/bin/python ] || echo "Installing the packages of uv.lock into .venv/ ..."
    UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never env -u VIRTUAL_ENV -u PYTHONPATH \
        "$UV" sync --frozen --python "$PYTHON" "$@" >"$LOG" 2>&1 || explain_failure
}

explain_failure() {
    if grep -qiE 'error sending request|failed to fetch|dns|connect|timed out' "$LOG"; then
        fail "Packages could not be downloaded. $NO_ANSWER"
    fi
    fail "The packages of uv.lock could not be installed: $(grep -m1 -i error "$LOG" || tail -n 1 "$LOG") (details: $LOG)"
}

PYTHON=$(find_python)
[ -n "$PYTHON" ] ||
    fail "Python 3.12, 3.13 or 3.14 is needed, and no such python3 is on PATH. Install one and repeat."
mkdir -p .uv
UV=$(find_uv)
if [ -z "$UV" ]; then
    install_uv
    UV=.uv/env/bin/uv
fi

if [ "${1:-}" = "--dev" ]; then
    # Inexact: testing must not remove the peers that measuring has installed.
    sync --all-extras --inexact
elif [ "${1:-}" = "--bench" ]; then
    sync --all-extras --group bench
else
    # Inexact: running must not remove what testing has installed.
    case "${FLEET_DATABASE_URL:-}" in
    postgres*) sync --no-dev --inexact --extra postgres ;;
    *) sync --no-dev --inexact ;;
    esac
fi

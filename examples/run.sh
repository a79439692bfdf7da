#!/bin/sh
# SPDX-License-Identifier: BSL-1.0
# Installs what is missing (Debian, Ubuntu), builds the examples, runs two of them.
set -eu
cd "$(dirname "$0")/.."
. .ci/packages.sh

need g++ cmake ninja-build
echo "== building in build/examples"
cmake -S examples -B build/examples -G Ninja --log-level=NOTICE
cmake --build build/examples

if [ -x build/examples/demo ]; then
  echo "== build/examples/demo"
  build/examples/demo
fi
echo "== build/examples/mode_choice examples/data/modechoice.csv"
build/examples/mode_choice examples/data/modechoice.csv

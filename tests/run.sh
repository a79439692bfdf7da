#!/bin/sh
# SPDX-License-Identifier: BSL-1.0
# Installs what is missing (Debian, Ubuntu), builds the tests, runs them.
#   sh tests/run.sh            what every change passes: the leg `plain`
#   sh tests/run.sh nightly    all legs
#   sh tests/run.sh LEG...     some: plain long asan tsan clang clang19 baseline i686 aarch64
set -eu
cd "$(dirname "$0")/.."
. .ci/packages.sh

jobs=$(nproc 2>/dev/null || echo 2)
target=
legs="plain long asan tsan clang clang19 baseline i686 aarch64"

# build FOLDER ARGUMENT...: configures and builds in build/FOLDER, only $target if there is one. run ARGUMENT...: the tests
# that were built last.
build()
{
  folder=build/$1
  shift
  echo "== building in $folder"
  cmake -S . -B "$folder" -G Ninja --log-level=NOTICE -D SMX_WERROR=ON "$@"
  cmake --build "$folder" ${target:+--target "$target"}
}
run()
{
  echo "== running the tests in $folder"
  ctest --test-dir "$folder" -j "$jobs" --output-on-failure --no-tests=error "$@"
}

need_for_tests() { need g++ cmake ninja-build catch2 libeigen3-dev libboost-dev "$@"; }

# -O2, as most programs are compiled; the build type's -O3 takes longer to compile.
build_plain() { build tests -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_FLAGS_RELEASE=-O2 "$@"; }

leg_plain()
{
  need_for_tests pkg-config
  build_plain
  run -LE slow
}

# The programs of `plain`, which read SMX_NIGHTLY and then try many more rows; with -O3, which warns of more.
leg_long()
{
  need_for_tests
  build long -D CMAKE_BUILD_TYPE=Release -D SMX_TEST_SLOW=ON
  SMX_NIGHTLY=1 run -LE consumer
}

# Reads and writes outside a row, and undefined arithmetic. g++ takes a quarter of an hour for each test here.
leg_asan()
{
  need_for_tests clang-19 libclang-rt-19-dev
  build asan -D CMAKE_CXX_COMPILER=clang++-19 -D CMAKE_BUILD_TYPE=Debug -D CMAKE_CXX_FLAGS_DEBUG="-O1 -g" \
    -D CMAKE_CXX_FLAGS="-D_GLIBCXX_ASSERTIONS \
    -fsanitize=address,undefined,float-divide-by-zero -fno-sanitize-recover=all -fno-omit-frame-pointer"
  run -LE "consumer|baseline|slow"
}

# Data races between the threads of a batch: threads{1}, {2}, {3}, {4} and more on every function. g++ 12's sanitizer may not
# start where addresses are random; setarch -R has them fixed, where that is allowed.
leg_tsan()
{
  need_for_tests
  target=batch.test
  build tsan -D SMX_BUILD_EXAMPLES=OFF -D CMAKE_BUILD_TYPE=Debug -D CMAKE_CXX_FLAGS_DEBUG="-O1 -g" \
    -D CMAKE_CXX_FLAGS="-fsanitize=thread"
  fixed=
  if setarch -R true 2>/dev/null; then fixed="setarch -R"; fi
  echo "== running $target in $folder"
  TSAN_OPTIONS=halt_on_error=1 $fixed "$folder/tests/$target"
}

# The other compiler: the distribution's, and 19, the newest that is promised.
leg_clang()
{
  need_for_tests clang
  build clang -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=clang++
  run -LE slow
}
leg_clang19()
{
  need_for_tests clang-19
  build clang19 -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=clang++-19
  run -LE slow
}

# A CPU without AVX runs what was linked from units for different CPUs.
leg_baseline()
{
  need_for_tests qemu-user-static
  build_plain
  run -L baseline
}

# cross ARCHITECTURE ARGUMENT...: by a cross compiler. Static, so that neither it nor an emulator needs the other's libraries.
# -O2: with -O3 GCC 12 warns of Boost's arrays for i686.
cross()
{
  arch=$1
  shift
  need_for_tests "g++-$arch-linux-gnu" qemu-user-static
  build "$arch" -D CMAKE_BUILD_TYPE=Release -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR="$arch" \
    -D CMAKE_CXX_COMPILER="$arch-linux-gnu-g++" -D CMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
    -D CMAKE_EXE_LINKER_FLAGS=-static -D CMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON "$@"
  run -LE "consumer|slow"
}

# 32-bit size_t. SSE, because x87 keeps more digits than the bounds are stated for. (Debian's g++-multilib would do for
# -m32, but cannot be installed beside a cross compiler.)
leg_i686() { cross i686 -D CMAKE_CXX_FLAGS="-msse2 -mfpmath=sse" -D CMAKE_CROSSCOMPILING_EMULATOR=qemu-i386-static; }

# Another architecture: the generic leaf, and a long double of 113 bits.
leg_aarch64() { cross aarch64 -D CMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static; }

[ $# -gt 0 ] || set -- plain
[ "$1" != nightly ] || set -- $legs
for leg; do
  case " $legs " in
    *" $leg "*) ;;
    *) die "no leg '$leg'; there are: $legs, and nightly for all" ;;
  esac
done

if [ $# = 1 ]; then
  "leg_$1"
  exit
fi
failed=
for leg; do
  sh tests/run.sh "$leg" || failed="$failed $leg"
done
[ -z "$failed" ] || die "failed:$failed"

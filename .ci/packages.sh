# SPDX-License-Identifier: BSL-1.0
# Sourced by tests/run.sh and examples/run.sh.

die()
{
  echo "$0: $*" >&2
  exit 1
}

# present PACKAGE: its command can be run; for a library, Debian says that it is installed. Where there is no dpkg, a
# library and pkg-config are taken to be there: CMake downloads Catch2, and the tests do without the others.
present()
{
  case $1 in
    g++) command -v g++ || command -v c++ ;;
    cmake) command -v cmake ;;
    pkg-config) command -v pkg-config || ! command -v dpkg-query ;;
    ninja-build) command -v ninja ;;
    clang) command -v clang++ ;;
    clang-[0-9]*) command -v "clang++-${1#clang-}" ;;
    qemu-user-static) command -v qemu-x86_64-static ;;
    g++-*-linux-gnu) command -v "${1#g++-}-g++" ;;
    *) ! command -v dpkg-query || [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
  esac >/dev/null
}

# need PACKAGE...: installs those that are missing. One line and status 1 when that cannot be done.
need()
{
  missing=
  for package; do
    present "$package" || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0

  command -v apt-get >/dev/null || die "please install$missing (named as Debian does), then run this again"
  sudo=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "neither root nor sudo: as root, run apt-get install$missing"
    sudo=sudo
  fi
  echo "Installing$missing"
  log=$(mktemp)
  # update may fail for a source that is not ours to mend: what counts is whether the packages come.
  $sudo apt-get update -qq >"$log" 2>&1 || true
  if ! $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >>"$log" 2>&1; then
    die "cannot install$missing: $(grep '^E: ' "$log" | tail -n 1 | grep . || tail -n 1 "$log") (all of it: $log)"
  fi
  rm -f "$log"
}

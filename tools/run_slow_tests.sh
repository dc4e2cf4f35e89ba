#!/usr/bin/env bash
# Runs the slow tests, a share of them at a time, each share in processes of its own: XLA never gives
# back the memory maps of what it has compiled (600 and more for a training step), and Linux ends a
# process that would have more than vm.max_map_count (65,530).
#
#   tools/run_slow_tests.sh PYTHON [SECONDS [SEED]]
#
# SECONDS: no test begins later; those that there is no time for are named.
# SEED: of the order in which they run.
set -euo pipefail

SHARES=6

main() {
  local python=$1 seconds=${2:-1000000} seed=${3:-0} share status=0
  for share in $(seq "$SHARES"); do
    printf '\n--- share %s of %s\n' "$share" "$SHARES"
    local chosen=(-m slow --shuffled "$seed" --share "$share/$SHARES")
    if ((SECONDS < seconds)); then
      "$python" -m pytest "${chosen[@]}" --dist worksteal --within $((seconds - SECONDS)) || status=$?
    else
      echo "No time left for these:"
      "$python" -m pytest "${chosen[@]}" --collect-only -q -n 0 | grep '::' || true
    fi
  done
  return "$status"
}

main "$@"

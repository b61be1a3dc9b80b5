#!/usr/bin/env bash
# Whether training has become slower since another revision, measured side by side on this machine.
#   perf/check-regression.sh [--base=REVISION] [options]
#
# Builds the base in a temporary git worktree and this checkout here, and lets them take a training step of `alpha bench`
# in turn. What counts is the ratio of each round's two times. It fails only when the whole 95 % interval of the ratio is
# above the margin, and is so again in a second series of rounds. Without --base, changes that are not committed are
# compared with the last commit, and a clean checkout with the commit before it; where there is none, nothing is done.
#
#   --short               for continuous integration, in less than a minute: the sources instead of built executables,
#                         the smallest model on one thread, and a margin of 25 %, since such machines are noisy
#   --sources             run the sources of both
#   --case=NAME           the case train/NAME of alpha bench (quickstart; --short: cpu-quickstart)
#   --backend=NAME        where to compute (cpu_ref)
#   --threads=N           CPU threads (0: the fastest number; --short: 1)
#   --rounds=N            rounds of a series (10; --short: 6)
#   --seconds=X           time for a measurement (3; --short: 0.7)
#   --margin=PERCENT      the slow-down that is accepted (3; --short: 25)
#   --timeout=SECONDS     for a measurement (600) --buildTimeout=SECONDS   for a build (1800)
#
# Exit codes: 0 not slower, or nothing to compare with, 1 slower, or it could not be measured, 2 wrong usage.
set -euo pipefail
# shellcheck source=perf/library.sh
source "$(dirname "$0")/library.sh"

base='' case_name=quickstart backend=cpu_ref threads=0 rounds=10 seconds=3 margin=3 limit=600 build_limit=1800 sources=
read_arguments() {
    for argument; do
        case $argument in
        --short) sources=yes case_name=cpu-quickstart threads=1 rounds=6 seconds=0.7 margin=25 ;;
        --sources) sources=yes ;;
        --base=*) base=${argument#*=} ;;
        --case=*) case_name=${argument#*=} ;;
        --backend=*) backend=${argument#*=} ;;
        --threads=*) threads=${argument#*=} ;;
        --rounds=*) rounds=${argument#*=} ;;
        --seconds=*) seconds=${argument#*=} ;;
        --margin=*) margin=${argument#*=} ;;
        --timeout=*) limit=${argument#*=} ;;
        --buildTimeout=*) build_limit=${argument#*=} ;;
        --help | -h) print_help; exit 0 ;;
        *) fail "unknown argument '$argument'; see --help." 2 ;;
        esac
    done
    { is_number "$rounds" && [ "$rounds" -ge 2 ]; } || fail "--rounds must be at least 2, not '$rounds'." 2
    is_number "$limit" || fail "--timeout must be a number of seconds, not '$limit'." 2
    is_number "$build_limit" || fail "--buildTimeout must be a number of seconds, not '$build_limit'." 2
    [[ $margin =~ ^[0-9]*\.?[0-9]+$ ]] || fail "--margin must be a number, not '$margin'." 2
}

nothing_to_compare() {
    say "$1, so there is nothing to compare with."
    exit 0
}

choose_base() {
    git -C "$root" rev-parse --verify --quiet HEAD >/dev/null 2>&1 || nothing_to_compare "this is no git checkout"
    if [ -n "$base" ]; then
        git -C "$root" rev-parse --verify --quiet "$base^{commit}" >/dev/null || fail "there is no revision '$base'." 2
        return
    fi
    base=HEAD^
    [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || base=HEAD
    git -C "$root" rev-parse --verify --quiet "$base^{commit}" >/dev/null ||
        nothing_to_compare "the commit before this one is not here (a first commit, or a shallow clone)"
}

# shellcheck disable=SC2329  # called by a trap
clean_up() {
    git -C "$root" worktree remove --force "$work/base" 2>/dev/null || true
    rm -rf "$work"
}

# alpha_of FOLDER: sets `command` to what runs Alpha of a checkout, built where that is asked for.
alpha_of() {
    command=("$python" "$1/alpha.py")
    if [ -n "$sources" ]; then
        [ "$backend" != cpu_ref ] || return 0
        PYTHON=$python with_limit "$build_limit" "$1/build_scripts/native" >>"$log" 2>&1
        return
    fi
    command=("$1/dist/alpha/alpha")
    say "building $1"
    with_limit "$build_limit" "$1/build_scripts/environment" dev >>"$log" 2>&1 &&
        with_limit "$build_limit" "$1/build_scripts/exe" >>"$log" 2>&1
}

# seconds_of COMMAND...: the median seconds of a step, or nothing and an exit code.
seconds_of() {
    local code=0
    with_limit "$limit" "$@" bench --suite=train --match="train/$case_name" --backend="$backend" --threads="$threads" \
        --seconds="$seconds" --json >"$work/bench.json" 2>>"$log" || code=$?
    [ "$code" -eq 0 ] || { echo "ended with $code: $*" >>"$log"; return "$code"; }
    "$python" -c '
import json, sys
[found] = [row["medianSeconds"] for row in json.load(sys.stdin) if row["case"] == sys.argv[1]]
print(found)' "train/$case_name" <"$work/bench.json" >"$work/seconds" 2>>"$log"
}

# Measures in turn, each first in every other round; the pairs go to $1.
series() {
    local round old new
    : >"$1"
    for ((round = 0; round < rounds; round++)); do
        for which in $([ $((round % 2)) -eq 0 ] && echo old new || echo new old); do
            if [ "$which" = old ]; then
                seconds_of "${old_command[@]}" || base_failed
                old=$(<"$work/seconds")
            else
                seconds_of "${new_command[@]}" || failed "this checkout could not be measured"
                new=$(<"$work/seconds")
            fi
        done
        printf '%s %s\n' "$old" "$new" >>"$1"
    done
}

failed() {
    complain "$1; the end of its log:"
    tail -n 15 "$log" >&2
    exit 1
}

base_failed() {
    [ -z "$base_is_given" ] || failed "$base could not be measured"
    nothing_to_compare "$base could not be measured"
}

read_arguments "$@"
find_python
base_is_given=$base
choose_base
work=$(mktemp -d) || fail "there is no room for temporary files."
log=$work/log
trap clean_up EXIT
handle_signals exit
git -C "$root" worktree add --quiet --detach "$work/base" "$base" >>"$log" 2>&1 || failed "git made no worktree of $base"
alpha_of "$work/base" || base_failed
old_command=("${command[@]}")
alpha_of "$root" || failed "this checkout could not be built"
new_command=("${command[@]}")
say "train/$case_name on $backend: this checkout beside $(git -C "$root" rev-parse --short "$base")"
for attempt in first second; do
    series "$work/pairs"
    code=0
    "$python" "$perf/ratio.py" --margin="$margin" <"$work/pairs" || code=$?
    [ "$code" -le 1 ] || fail "the pairs could not be compared."
    [ "$code" -ne 0 ] || exit 0
    [ "$attempt" = second ] || say "slower by more than $margin %; measuring again"
done
fail "slower than $base by more than $margin %, twice in a row."

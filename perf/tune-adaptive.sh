#!/usr/bin/env bash
# Looks for settings of Alpha that train faster on this machine than the defaults.
#   perf/tune-adaptive.sh [steps=100] [loops=20] [options] [-- options of alpha train]
#
# A loop trains with a candidate and with the defaults, in turn, so that what slows the machine down meets both. Tried are
# the numbers of threads, activation checkpointing, and the variables of `alpha env` that may matter, one by one and then
# the best together. Only loops whose two runs are `ok` count. The loops go to tune-<time>.csv, and the settings that are
# faster beyond the noise, if any are, to best-<backend>-<workload>.env, which `alpha` reads with --envFile=.
#
#   --alpha=PATH          measure this executable, or these sources (alpha.py), and build nothing; also ALPHA=PATH
#   --backend=NAME        where to compute: cpu_ref or helios (cpu_ref)
#   --device=N            the number of the Vulkan device (-1: the first GPU)
#   --workload=NAME       cpu-quickstart, quickstart, chars10m-b8, chars10m or gpt2; by the device otherwise
#   --out=DIR             where the files go (perf)
#   --timeout=SECONDS     for a run (600)         --buildTimeout=SECONDS   for the build (1800)
#   --leastSeconds=X      shorter measurements are unstable (1)
#   --commit=NAME         the commit, where git does not know it
#
# Exit codes: 0 done, 1 no loop was valid, 2 wrong usage, 130 and 143 interrupted.
set -euo pipefail
# shellcheck source=perf/library.sh
source "$(dirname "$0")/library.sh"

steps='' loops=''
extra=()
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --) shift; extra=("$@"); break ;;
        -*) read_common "$1" || fail "unknown option '$1'; see --help." 2 ;;
        *) if [ -z "$steps" ]; then steps=$1; else loops=$1; fi ;;
        esac
        shift
    done
    steps=${steps:-100} loops=${loops:-20}
    check_common
    is_number "$loops" || fail "the number of loops must be at least 1, not '$loops'." 2
}

# shellcheck disable=SC2329  # called by a trap
interrupted() {
    rm -rf "$work"
    complain "interrupted; what was measured is in $table."
    exit "$1"
}

# measure SETTINGS: a run with them, or with the defaults when there are none; sets status, reason and median_ms.
measure() {
    local judged run_dir=$work/run
    tr ' ' '\n' <<<"$1" >"$work/settings.env"
    train_once "$run_dir" "$steps" "$limit" --backend="$backend" --device="$device" --envFile="$work/settings.env" \
        ${extra[@]+"${extra[@]}"} >>"$log" 2>&1
    judged=$("$python" "$perf/benchmark.py" judge "$run_dir" --steps="$steps" --exit-code="$exit_code" \
        --limit="$limit" --least-seconds="$least_seconds") || fail "the run could not be judged."
    rm -rf "$run_dir"
    status=$(sed -n 's/^status=//p' <<<"$judged")
    reason=$(sed -n 's/^reason=//p' <<<"$judged")
    median_ms=$(sed -n 's/^median_ms=//p' <<<"$judged")
}

run_loop() {
    local loop=$1 candidate order default_ms='' candidate_ms='' result=ok why='' settings first=default
    candidate=$("$python" "$perf/tuning.py" next "$table" --candidates="$work/candidates" --loops="$loops")
    order=('' "$candidate")
    if [ $((loop % 2)) -eq 0 ]; then
        order=("$candidate" '') first=candidate
    fi
    for settings in "${order[@]}"; do
        measure "$settings"
        if [ "$status" != ok ]; then
            result=$status why="${settings:-defaults}: $reason"
            break
        fi
        if [ -z "$settings" ]; then default_ms=$median_ms; else candidate_ms=$median_ms; fi
    done
    "$python" "$perf/tuning.py" add "$table" "timestamp=$(date -u +%Y-%m-%dT%H:%M:%SZ)" "loop=$loop" \
        "candidate=$candidate" "first=$first" "status=$result" "reason=$why" "candidate_ms=$candidate_ms" \
        "default_ms=$default_ms" "git_commit=$commit" "machine=$machine" "backend=$backend" "workload=$workload" \
        "steps=$steps" "load_average=$(load_average)"
    say "loop $loop of $loops: $candidate: ${result/#ok/$candidate_ms ms, defaults $default_ms ms}${why:+ ($why)}"
}

read_arguments "$@"
find_python
choose_alpha "$alpha_path"
for tool in timeout getconf; do
    command -v "$tool" >/dev/null || fail "$tool is not installed."
done
[ -n "$commit" ] || commit=$(commit_here)
mkdir -p "$out" || fail "cannot make the folder $out."
out=$(cd "$out" && pwd)
stamp=$(date -u +%Y%m%d-%H%M%S)-$$
table=$out/tune-$stamp.csv
log=$out/run-$stamp.log
work=$(mktemp -d) || fail "there is no room for temporary files."
trap 'rm -rf "$work"' EXIT
handle_signals interrupted
: >"$log" || fail "cannot write $log."
if [ -z "$alpha_path" ] && is_stale; then
    [ -x "$root/build_scripts/exe" ] || fail "there is no build_scripts/exe; measure the sources with --alpha=alpha.py."
    say "building the executable"
    build_once "$build_limit" >>"$log" 2>&1 || fail "the build failed; its log is $log."
fi
measured_machine "$backend" "$device" "$workload" "$log" ||
    fail "'${alpha[*]} devices --json' names no device for $backend; the log is $log."
"${alpha[@]}" env --json 2>>"$log" |
    "$python" "$perf/tuning.py" candidates --backend="$backend" --cores="$(nproc)" >"$work/candidates" ||
    fail "'${alpha[*]} env --json' does not list the variables; the log is $log."
make_corpus >>"$log" 2>&1 || fail "the text to train on could not be made; the log is $log."
say "$(wc -l <"$work/candidates") settings, $workload, $steps steps on $machine"
for ((loop = 1; loop <= loops; loop++)); do
    run_loop "$loop"
done
comment="Found by perf/tune-adaptive.sh on $machine: $backend, $workload, $steps steps, commit $commit, $(date -u +%Y-%m-%d)."
"$python" "$perf/tuning.py" best "$table" --candidates="$work/candidates" --loops="$loops" --comment="$comment" \
    --out="$out/best-$backend-$workload.env"

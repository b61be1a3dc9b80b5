#!/usr/bin/env bash
# Measures how fast this machine trains with the built executable, and keeps the result.
#   perf/run-compiled-benchmark.sh [steps=100] [options] [-- options of alpha train]
#
# Builds the executable when a source is newer, trains, and tries again up to twice while the run is not `ok`. The best
# run becomes a row of compiled-loop-history.csv, compared with the last ok rows like it, and last-benchmark.env.
#
#   --alpha=PATH          measure this executable, or these sources (alpha.py), and build nothing; also ALPHA=PATH
#   --backend=NAME        where to compute: cpu_ref or helios (cpu_ref)
#   --device=N            the number of the Vulkan device (-1: the first GPU)
#   --workload=NAME       cpu-quickstart, quickstart, chars10m-b8, chars10m or gpt2; by the device otherwise
#   --threads=N           CPU threads (0: the fastest number)
#   --envFile=FILE        settings for Alpha, such as those that tune-adaptive.sh writes
#   --out=DIR             where history, log and last-benchmark.env go (perf)
#   --timeout=SECONDS     for a run (600)         --buildTimeout=SECONDS   for a build (1800)
#   --retries=N           runs after the first (2), and builds
#   --leastSeconds=X      shorter measurements are unstable (1)
#   --commit=NAME         the commit, where git does not know it
#
# Exit codes: 0 ok or unstable, 1 smoke_fail or failed, 2 wrong usage, 130 and 143 interrupted.
set -euo pipefail
# shellcheck source=perf/library.sh
source "$(dirname "$0")/library.sh"

steps=100 threads=0 env_file='' retries=2
extra=()
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --threads=*) threads=${1#*=} ;;
        --envFile=*) env_file=${1#*=} ;;
        --retries=*) retries=${1#*=} ;;
        --) shift; extra=("$@"); break ;;
        -*) read_common "$1" || fail "unknown option '$1'; see --help." 2 ;;
        *) steps=$1 ;;
        esac
        shift
    done
    check_common
    [[ $retries =~ ^[0-9]$ ]] || fail "--retries must be from 0 to 9, not '$retries'." 2
    [[ $threads =~ ^[0-9]{1,4}$ ]] || fail "--threads must be a whole number, not '$threads'." 2
    [ -z "$env_file" ] || [ -f "$env_file" ] || fail "there is no file '$env_file'." 2
}

# What is known before the runs, for the row.
write_facts() {
    printf '%s\n' "timestamp=$timestamp" "git_commit=$commit" "steps=$steps" "backend=$backend" \
        "compile_ms=$compile_ms" "log_file=${log#"$root/"}" "machine=$machine" "workload=$workload" \
        "configuration=$configuration" "executable=$executable" "load_average=$(load_average)" \
        "niceness=$(niceness)" >"$facts"
}

# record [--failed=REASON] [RUN...]: adds the row, prints it and ends.
record() {
    local code=0
    trap '' INT TERM
    "$python" "$perf/benchmark.py" record --out="$out" --facts="$facts" "$@" | tee -a "$log" || code=1
    rm -rf "$facts" "$work"
    [ "$code" -eq 0 ] || complain "the benchmark failed; its log is $log."
    exit "${stopped_by:-$code}"
}

# shellcheck disable=SC2329  # called by a trap
interrupted() {
    stopped_by=$1
    record --failed=interrupted
}

# A benchmark that was killed could not add its row; what it left behind is no longer locked.
record_abandoned() {
    local left
    for left in "$out"/.run-*.facts; do
        if [ -s "$left" ] && [ "$left" != "$facts" ]; then
            flock --nonblock --conflict-exit-code 0 "$left" "$python" "$perf/benchmark.py" abandoned --out="$out" "$left"
        fi
    done
}

build() {
    local try start
    [ -x "$root/build_scripts/exe" ] || record --failed="there is no build_scripts/exe; use --alpha=alpha.py"
    for ((try = 0; try <= retries; try++)); do
        say "building the executable"
        start=$(milliseconds)
        if build_once "$build_limit" >>"$log" 2>&1; then
            compile_ms=$(($(milliseconds) - start))
            return
        fi
    done
    record --failed="the build failed"
}

run_all() {
    local try run options=(--backend="$backend" --device="$device" --threads="$threads" ${extra[@]+"${extra[@]}"})
    [ -z "$env_file" ] || options+=(--envFile="$env_file")
    local runs=()
    for ((try = 0; try <= retries; try++)); do
        local run_dir=$runs_folder/benchmark-$stamp-$try
        say "run $((try + 1)) of at most $((retries + 1)): $workload, $steps steps on $machine"
        train_once "$run_dir" "$steps" "$limit" "${options[@]}" >>"$log" 2>&1
        run=$work/$try
        {
            "$python" "$perf/benchmark.py" judge "$run_dir" --steps="$steps" --exit-code="$exit_code" --limit="$limit" \
                --least-seconds="$least_seconds"
            printf '%s\n' "run_dir=${run_dir#"$root/"}" "run_ms=$run_ms" "busy_cores=$busy_cores"
        } >"$run" || record --failed="the run could not be judged"
        sed -n 's/^\(status\|reason\|median_tok_s\)=\(..*\)/    \1 \2/p' "$run"
        runs+=("$run")
        grep -q '^status=ok$' "$run" && break
    done
    record "${runs[@]}"
}

read_arguments "$@"
find_python
choose_alpha "$alpha_path"
[ -n "$commit" ] || commit=$(commit_here)
timestamp=$(date -u +%Y-%m-%dT%H:%M:%SZ)
stamp=$(date -u +%Y%m%d-%H%M%S)-$$
runs_folder=$root/runs
compile_ms='' machine=''
configuration="threads=$threads${extra[*]+ ${extra[*]}}"
[ -z "$env_file" ] || configuration+=" $(grep -v '^[[:space:]]*\(#\|$\)' "$env_file" | tr '\n' ' ')"
mkdir -p "$out" "$runs_folder" || fail "cannot make the folder $out."
out=$(cd "$out" && pwd)
log=$out/run-$stamp.log
facts=$out/.run-$stamp.facts
work=$(mktemp -d) || fail "there is no room for temporary files."
handle_signals interrupted
: >"$log" || fail "cannot write $log."
(: >"$facts") 2>/dev/null || fail "cannot write to $out."
exec 9<"$facts"
# While it is empty, no other run takes it for one that was left behind.
! command -v flock >/dev/null || flock --nonblock 9
write_facts || { rm -f "$facts"; fail "cannot write to $out."; }
for tool in timeout flock; do
    command -v "$tool" >/dev/null || record --failed="$tool is not installed"
done
record_abandoned
if [ -z "$alpha_path" ]; then
    if is_stale; then build; fi
elif [ ! -f "${alpha[-1]}" ]; then
    record --failed="there is no file ${alpha[-1]}"
fi
measured_machine "$backend" "$device" "$workload" "$log" ||
    record --failed="'${alpha[*]} devices --json' names no device for $backend"
write_facts
make_corpus >>"$log" 2>&1 || record --failed="the text to train on could not be made"
run_all

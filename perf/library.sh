# shellcheck shell=bash disable=SC2034
# What the scripts of this folder share; they read it with `source`. Sets: root, perf, python, alpha (an array: how the
# measured Alpha is started), executable (its name). Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 stopped.

perf=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$perf")
child=
# shellcheck source=build_scripts/script.bash
source "$root/build_scripts/script.bash"

is_number() { [[ $1 =~ ^[1-9][0-9]{0,8}$ ]]; }

# read_common OPTION: takes an option of those that measure; another one is refused, with 1.
backend=cpu_ref device=-1 workload='' out=$perf limit=600 build_limit=1800 least_seconds=1 commit='' alpha_path=${ALPHA:-}
read_common() {
    case $1 in
    --alpha=*) alpha_path=${1#*=} ;;
    --backend=*) backend=${1#*=} ;;
    --device=*) device=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --timeout=*) limit=${1#*=} ;;
    --buildTimeout=*) build_limit=${1#*=} ;;
    --leastSeconds=*) least_seconds=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --help | -h) print_help; exit 0 ;;
    *) return 1 ;;
    esac
}

# Ends the script where one of them, or `steps`, is wrong.
check_common() {
    { is_number "$steps" && [ "$steps" -ge 20 ]; } || fail "the number of steps must be at least 20, not '$steps'." 2
    [[ $device =~ ^(-1|[0-9]{1,3})$ ]] || fail "--device must be a number, not '$device'." 2
    is_number "$limit" || fail "--timeout must be a number of seconds, not '$limit'." 2
    is_number "$build_limit" || fail "--buildTimeout must be a number of seconds, not '$build_limit'." 2
    [[ $least_seconds =~ ^[0-9]*\.?[0-9]+$ ]] || fail "--leastSeconds must be a number, not '$least_seconds'." 2
    [ -z "$workload" ] || shape_of "$workload" || fail "there is no workload '$workload'; valid: $workloads." 2
}

milliseconds() { printf '%s\n' $((${EPOCHREALTIME/[.,]/} / 1000)); }

# The interpreter for the computations here and for Alpha's sources; they need Python 3.11 and no package.
find_python() {
    python=${PYTHON:-$root/.venv/bin/python}
    [ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "'$python' is no Python 3.11 or newer; name one with PYTHON=..."
}

# choose_alpha [PATH]: what to measure. A name that ends in .py is run with $python.
choose_alpha() {
    local path=${1:-$root/dist/alpha/alpha}
    executable=${path#"$root/"}
    case $path in
    /*) ;;
    *) path=$PWD/$path ;;
    esac
    alpha=("$path")
    case $path in
    *.py) alpha=("$python" "$path") ;;
    esac
}

# measured_machine BACKEND DEVICE WORKLOAD LOG: sets `machine`, and `workload`, which follows from it when none is given.
# DEVICE is as --device of Alpha.
measured_machine() {
    local described
    described=$("${alpha[@]}" devices --json 2>>"$4" |
        "$python" "$perf/benchmark.py" machine --backend="$1" --device="${2/#-1/${ALPHA_DEVICE:--1}}" 2>>"$4") ||
        return
    machine=${described%%$'\n'*}
    workload=${3:-${described#*$'\n'}}
    shape_of "$workload"
}

# What the executable is made of.
made_of=(alpha.py alpha pyproject.toml native kernels 'build_scripts/exe*')

# Whether a file of these is newer than the executable; the build itself makes those of alpha/*.so.
is_stale() {
    local parts=()
    local name
    for name in "${made_of[@]}"; do
        # shellcheck disable=SC2206  # a pattern
        parts+=("$root"/$name)
    done
    [ ! -x "${alpha[0]}" ] ||
        [ -n "$(find "${parts[@]}" -type f ! -path '*/__pycache__/*' ! -name '*.so' -newer "${alpha[0]}" -print -quit)" ]
}

# The commit of this checkout, with -dirty when the code has changed since.
commit_here() {
    local commit
    commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null) || { echo unknown; return; }
    if [ -n "$(git -C "$root" status --porcelain -- "${made_of[@]}" 2>/dev/null)" ]; then
        commit+=-dirty
    fi
    printf '%s\n' "$commit"
}

# with_limit SECONDS COMMAND...: runs it; 124 when it took longer, and 128 + N when signal N ended it. A signal to this
# script reaches the command at once, since the shell waits in the foreground. Nothing that it started is left: timeout
# makes a process group, which is killed in the end.
with_limit() {
    local limit=$1 start=$SECONDS code=0
    shift
    timeout --kill-after=10 "$limit" "$@" 3>&- 4>&- 9>&- &
    child=$!
    wait "$child" || code=$?
    end_group
    # What ignores the end of its time is killed, and timeout then ends with 137.
    [ "$code" -ne 137 ] || [ $((SECONDS - start)) -lt "$limit" ] || code=124
    return "$code"
}

stop_child() {
    [ -n "$child" ] || return 0
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    end_group
}

end_group() {
    kill -KILL -- "-$child" 2>/dev/null || true
    child=
}

# build_once LIMIT: builds the executable. A build that finds nothing changed but times leaves it as it is.
build_once() {
    with_limit "$1" "$root/build_scripts/exe" && [ -x "${alpha[0]}" ] && touch "${alpha[0]}"
}

# handle_signals FUNCTION: calls it with 130 or 143 when this script is interrupted; what was running is stopped before.
handle_signals() {
    exec 3>&1 4>&2  # the handler may be called where output goes to the log
    # shellcheck disable=SC2064
    trap "trap '' INT TERM; exec >&3 2>&4; stop_child; $1 130" INT
    # shellcheck disable=SC2064
    trap "trap '' INT TERM; exec >&3 2>&4; stop_child; $1 143" TERM
}

# Ticks of the clock that all cores of the machine spent on work, and those that this shell's ended children did.
busy_ticks() {
    local fields own
    read -r -a fields </proc/stat
    read -r -a own </proc/$$/stat
    printf '%s\n' $((fields[1] + fields[2] + fields[3] + fields[6] + fields[7] + fields[8] - own[15] - own[16]))
}

# The nice value of this process, and after a slash that of its session, where the kernel has autogroups.
niceness() {
    local group=''
    [ ! -r /proc/self/autogroup ] || group=/$(sed 's/.* nice //' /proc/self/autogroup)
    printf '%s\n' "$(nice)$group"
}

load_average() { cut -d ' ' -f 1 /proc/loadavg; }

# shape_of WORKLOAD: the options of `alpha train` in `shape`, and the text in `tokenizer`.
shape_of() {
    local layers heads dim block batch
    tokenizer=char
    case $1 in
    cpu-quickstart) layers=2 heads=4 dim=64 block=64 batch=8 ;;
    quickstart) layers=4 heads=4 dim=128 block=128 batch=16 ;;
    chars10m-b8) layers=6 heads=6 dim=384 block=256 batch=8 ;;
    chars10m) layers=6 heads=6 dim=384 block=256 batch=64 ;;
    gpt2) layers=12 heads=12 dim=768 block=1024 batch=32 tokenizer=bpe-16k ;;
    *) return 1 ;;
    esac
    shape=(--layers="$layers" --heads="$heads" --dim="$dim" --block="$block" --batch="$batch" --tokenizer="$tokenizer")
}

workloads='cpu-quickstart, quickstart, chars10m-b8, chars10m, gpt2'

# The text to train on, made once by Alpha itself.
make_corpus() {
    corpus=$root/data/benchmark.txt
    [ -s "$corpus" ] && return
    mkdir -p "$root/data" &&
        with_limit 120 "${alpha[@]}" datagen --domain=chaos --size=4MB --seed=42 --out="$corpus.$$.txt" &&
        mv "$corpus.$$.txt" "$corpus"
}

# train_once RUN_DIR STEPS LIMIT [OPTIONS]...: one training run; sets exit_code, run_ms and busy_cores (cores that other
# processes kept busy meanwhile). Its output is the caller's to redirect.
train_once() {
    local run_dir=$1 steps=$2 limit=$3 start ticks
    shift 3
    exit_code=0
    ticks=$(busy_ticks)
    start=$(milliseconds)
    with_limit "$limit" "${alpha[@]}" train --data="$corpus" "${shape[@]}" --lr=1e-3 --evalInterval=0 --sampleInterval=0 \
        --minTokensPerParam=0 --maxDatasetPasses=1e9 --warnDatasetPasses=1e9 \
        --iters="$steps" --runDir="$run_dir" "$@" || exit_code=$?
    run_ms=$(($(milliseconds) - start))
    ticks=$(($(busy_ticks) - ticks))
    ticks=$((ticks > 0 ? ticks * 100000 / ($(getconf CLK_TCK) * (run_ms + 1)) : 0))
    busy_cores=$((ticks / 100)).$(printf '%02d' $((ticks % 100)))
    # The weights are of no use, and large.
    rm -f "$run_dir"/checkpoint-*.safetensors
}

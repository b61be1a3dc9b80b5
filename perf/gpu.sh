#!/usr/bin/env bash
# All that is measured and tested on a real GPU, in parts, each with a time limit and a log of its own.
#   perf/gpu.sh [--torch=PYTHON] [--corpus=DIR] [--within=SECONDS] [--out=DIR] [--processor] [PART]...
#   perf/gpu.sh --list [PART]...
# A PART is a name of the list, or what names of it begin with, as serve; without one all run, in the list's order.
#   --list             print the parts, with the seconds that each takes about and at most, and run none
#   --torch=PYTHON     an interpreter with PyTorch for CUDA; without it what compares with it is left out
#   --corpus=DIR       what perf/corpus_tokens.py wrote; without it nothing is learned
#   --within=SECONDS   begin no part that would not fit, and end the last one then
#   --out=DIR          where logs and figures go, by the parts' names; without it perf/gpu-TIME
#   --processor        go on where Vulkan has no GPU but a driver that computes on the processor
# Results are printed when a part ends, and a table in the end. Ends with 1 when a part failed or took too long.
# PYTHON=... names the interpreter that Alpha runs in; the tests need pytest and pytest-xdist there. ALPHA_DEVICE=N is the
# GPU, and CUDA_VISIBLE_DEVICES=N that of PyTorch, which may count them in another order.
set -euo pipefail
# shellcheck source=perf/library.sh
source "$(dirname "$0")/library.sh"

torch='' corpus='' within=999999999 out=$perf/gpu-$(date +%Y%m%d-%H%M%S) list='' processor='' held_out_bytes=''
chosen=() rows=() failed=0 running='' names=$(sed -n 's/^part \([^ ]*\) .*/\1/p' "$0")
for argument; do
    case $argument in
    --list) list=yes ;;
    --torch=*) torch=${argument#*=} ;;
    --corpus=*) corpus=${argument#*=} ;;
    --within=*) within=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    --processor) processor=yes ;;
    --help | -h) print_help; exit 0 ;;
    -*) fail "there is no option '$argument'; see --help." 2 ;;
    *) grep -qE "^$argument(-|$)" <<<"$names" || fail "there is no part '$argument'; there are ${names//$'\n'/, }." 2
        chosen+=("$argument") ;;
    esac
done
is_number "$within" || fail "--within must be a number of seconds, not '$within'." 2
find_python
[[ $python != [!/]*/* ]] || python=$PWD/$python  # the tests run in another folder
if [ -z "$list" ]; then
    [ -z "$corpus" ] || held_out_bytes=$(sed -n '/"held-out"/,/}/s/.*"bytes": \([0-9]*\).*/\1/p' "$corpus/counts.json") ||
        fail "perf/corpus_tokens.py has not written $corpus." 2
    mkdir -p "$out" || fail "there is no place for logs."
    alpha=("$python" "$root/alpha.py")
    measured_machine helios -1 '' "$out/device.log" ||
        fail "there is no device that Alpha can compute on through Vulkan; 'alpha devices' says why."
    [ "$workload" != cpu-quickstart ] || [ -n "$processor" ] ||
        fail "$machine is no GPU; with --processor this goes on all the same, and takes hours."
    say "$machine; logs in $out"
fi
export PYTHON=$python PYTHONUNBUFFERED=1

is_chosen() {
    local each
    for each in "${chosen[@]:-$1}"; do [[ $1 != "$each" && $1 != "$each"-* ]] || return 0; done
    return 1
}

# part NAME ABOUT MOST NEEDS FINDS WHAT COMMAND...: lists or runs one that is chosen. ABOUT and MOST are seconds, NEEDS
# the options without which it is left out, FINDS the sed that finds its results in its log.
part() {
    local name=$1 about=$2 most=$3 needs=$4 finds=$5 what=$6 left=$((within - SECONDS)) code=0 need found verdict
    shift 6
    is_chosen "$name" || return 0
    [ -z "$list" ] || { printf '%-16s %3s of %3s s  %s%s\n' "$name" "$about" "$most" "$what" "${needs:+, with }$needs"; return; }
    begin=$SECONDS
    for need in $needs; do
        need=${need#--}
        [ -n "${!need}" ] || { add_row "$name" 'left out' "for want of --$need"; return; }
    done
    [ "$about" -le "$left" ] || { add_row "$name" 'left out' "it takes about $about s, and $left s are left"; return; }
    say "$name: $what"
    running=$name
    with_limit $((most < left ? most : left)) "$@" >"$out/$name.log" 2>&1 || code=$?
    running=
    mapfile -t found < <(sed -nE "$finds" "$out/$name.log" | awk '!seen[$0]++')
    [ ${#found[@]} -eq 0 ] || printf '    %s\n' "${found[@]}"
    case $code-${#found[@]} in
    0-0) verdict='no result' ;;
    0-*) verdict=ok ;;
    124-*) verdict='out of time' ;;
    *) verdict="failed with $code" ;;
    esac
    [ "$verdict" = ok ] || { failed=1; complain "$verdict; the end of $out/$name.log:"; tail -n 15 "$out/$name.log" >&2; }
    [ ${#found[@]} -le 8 ] || found=("${found[-1]}")  # of many the last says most
    add_row "$name" "$verdict" "$(printf '%s; ' "${found[@]}")"
}

# add_row PART VERDICT RESULT: prints a line of the table, and keeps it.
add_row() {
    rows+=("$(printf '%-16s %4s s  %-15s %s' "$1" $((SECONDS - begin)) "$2" "${3%; }")")
    printf '%s\n' "${rows[-1]}"
}

finish() {
    [ -z "$running" ] || add_row "$running" interrupted ''
    printf '\n%s, %s\n' "$machine" "$(commit_here)"
    printf '%s\n' "${rows[@]}"
    exit "$1"
}

tests='s/^(\[gw[0-9]+\] \[ *[0-9]+%\] )?(FAILED|ERROR) (tests\/[^ ]+).*/\3/p
    s/^=+ ([0-9]+ (failed|passed|skipped|error).* in [0-9.]+s( \([0-9:]+\))?) =+$/\1/p'
rates='s/^([a-z0-9_]+) .* ([0-9.,]+ tokens\/s).*/\1 \2/p'
prompts='s/^\{"tokens": ([0-9]+), "milliseconds": \{.*"median": ([0-9.]+).*"busy.*/\1 tokens \2 ms/p'
ratios='s/^([^ ]+) +([^ ]+) +([0-9.]+ ms) +([0-9.]+ ms) +([0-9.]+ \(.*\))$/\1 \2 \3, torch \4: \5/p'
points='/^product | MiB$/p'
bits='s/.*"bitsPerByte": ([0-9.]+).*/\1 bits per byte/p'

# Few workers: with fifteen on one card tests ran into their time limits. pytest-benchmark, where it is installed, warns of
# xdist, and warnings are errors.
pytest=(env -C "$root" "$python" -m pytest -p no:benchmark -vv -rfE -n 4)
first=(tests/test_helios_{relay,stages,orthogonal,engine,matmul,attention}.py)
serve=("$python" "$root/alpha.py" bench --backend=helios --dtype=f16 --suite=serve --match=/gpt2-124m)
beside=("--python=$torch" --rounds=2)
[ -n "$list" ] || handle_signals finish

# What is most wanted comes first.
part tests-inference 200 600 '' "$tests" 'tests of products, decoding and its relay' "${pytest[@]}" "${first[@]}"
part serve-barriers 45 150 '' "$rates" 'an engine at work, gpt2-124m in float16' \
    env ALPHA_RELAY=off "${serve[@]}" --out="$out/serve-barriers.json"
part serve-relay 45 150 '' "$rates" 'the same with ALPHA_RELAY=on' \
    env ALPHA_RELAY=on "${serve[@]}" --out="$out/serve-relay.json"
part serve-prompts 20 90 '' "$prompts" 'prompts of 512 and 1,024 tokens' "$python" "$perf/prefill.py"
part train-f16 200 500 --torch "$ratios" 'training steps in float16 beside PyTorch' "$perf/compare_train.sh" \
    "${beside[@]}" --dtype=f16 --json="$out/train-f16.json" quickstart chars10m gpt2-124m
part serve-graph 130 300 --torch "$ratios" 'serving beside PyTorch with a CUDA graph a step' "$perf/compare_serve.sh" \
    "${beside[@]}" --dtype=f16 --mode=fp16-graph --json="$out/serve-graph.json" gpt2-124m
part scaling 60 300 '' "$points" 'steps by batch, block, width and layers, with a picture' \
    "$python" "$perf/scaling.py" --out="$out/scaling.svg" --json="$out/scaling.json"
part train-f32 120 300 --torch "$ratios" 'training steps in float32 beside eager PyTorch' "$perf/compare_train.sh" \
    "${beside[@]}" --dtype=f32 --mode=fp32 --json="$out/train-f32.json" gpt2-124m-b8 chars10m
part tests-rest 300 900 '' "$tests" 'all other tests of helios and its kernels' "${pytest[@]}" \
    "${first[@]/#/--deselect=}" "$root"/tests/test_{helios_*,backend_ops,kernels}.py
part serve-compiled 250 500 --torch "$ratios" 'serving beside PyTorch compiled, too' "$perf/compare_serve.sh" \
    "${beside[@]}" --dtype=f16 --mode=fp16-compile-graph --json="$out/serve-compiled.json" gpt2-124m
part train-large 200 400 --torch "$ratios" 'training steps of gpt2-350m beside PyTorch' "$perf/compare_train.sh" \
    "${beside[@]}" --dtype=f16 --json="$out/train-large.json" gpt2-350m
# shellcheck disable=SC2016  # $0 to $3 are the other bash's
part learn-alpha 660 780 --corpus "$bits" 'ten minutes of training, and held-out text' bash -c '
    "$0" "$1" train --recipe=gpu-10-minutes --backend=helios --seed=1 --data="$2/training.txt" \
        --valData="$2/choices.txt" --tokenizerArtifacts="$2/tokenizer.json" --runDir="$3" &&
    "$0" "$1" eval --checkpoint="$3" --data="$2/held-out.txt" --nBatches=0 --batch=16 --backend=helios --json' \
    "$python" "$root/alpha.py" "$corpus" "$out/learn-alpha"
part learn-torch 630 780 '--corpus --torch' "$bits" 'the same of PyTorch, at its best rate' \
    "$torch" "$perf/torch_peer.py" learn bf16-compile '{"layers": 8, "heads": 8, "dim": 512, "block": 512, "batch": 64,
    "dropout": 0.1, "lr": 2.5e-3, "seed": 1, "within": 600, "device": "cuda", "vocabulary": 8192,
    "bytes": '"${held_out_bytes:-0}, \"data\": \"$corpus/training.bin\", \"heldOut\": \"$corpus/held-out.bin\"}"
[ -n "$list" ] || finish "$failed"

# shellcheck shell=bash
# What the scripts of this folder and of perf/ share; they read it with `source`, before they go to another folder.

program=${0##*/}
program=${program%.sh}

say() { printf '%s: %s\n' "$program" "$1"; }
complain() { printf '%s: error: %s\n' "$program" "$1" >&2; }
fail() { complain "$1"; exit "${2:-1}"; }

# The help of a script is the comment at its top.
print_help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# answer_help ARGUMENT...: prints it and ends, where the first argument asks for it.
answer_help() { case ${1:-} in --help | -h) print_help; exit 0 ;; esac; }

# take_one "NAME..." ARGUMENT...: ends the script where there is more than one argument, or one that is none of the names.
take_one() {
    local name names=$1
    shift
    answer_help "$@"
    [ -n "$*" ] || return 0
    for name in $names; do [ "$*" != "$name" ] || return 0; done
    fail "unknown argument '$*'; see --help." 2
}

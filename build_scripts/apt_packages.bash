# shellcheck shell=bash
# Read with `source` by scripts that bring what they need of the system.

# apt_install NAME PACKAGE...: installs Debian or Ubuntu packages, as root or through sudo; before them may stand options
# of `apt-get install`. Fails, and says why in the name of NAME, where that cannot be done. With nothing to install it
# says nothing; `apt_prefix` is what goes before a command to run it as root.
apt_prefix=()
[ "$(id -u)" -eq 0 ] || apt_prefix=(sudo -n)

apt_possible() { command -v apt-get >/dev/null && "${apt_prefix[@]}" true 2>/dev/null; }

apt_install() {
    local name=$1 output each wanted=()
    shift
    for each; do case $each in -*) ;; *) wanted+=("$each") ;; esac; done
    printf '%s: installing %s\n' "$name" "${wanted[*]}"
    if ! output=$(
        "${apt_prefix[@]}" apt-get update -q 2>&1 &&
            "${apt_prefix[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends "$@" 2>&1
    ); then
        printf '%s\n' "$output" | tail -n 10 >&2
        printf '%s: apt-get could not install %s; its message is above\n' "$name" "${wanted[*]}"
        return 1
    fi
}

# apt_lists FOLDER "SUITE...": sets `apt` to an apt-get that knows the packages of these Debian suites alone and keeps all
# it has in FOLDER, with no need of root; the system stays as it is. Prints why where that fails. DEBIAN_MIRROR names
# another mirror.
apt_lists() {
    local folder=$1 suites=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg suite
    local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
    command -v apt-get >/dev/null || { echo "apt-get is needed to fetch Debian's packages."; return 1; }
    [ "$(dpkg --print-architecture)" = amd64 ] || { echo "only amd64 processors are supported."; return 1; }
    [ -e "$keyring" ] || {
        echo "signatures of Debian's packages cannot be checked; sudo apt-get install debian-archive-keyring."
        return 1
    }
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/root"
    : >"$folder/status"
    for suite in $suites; do
        printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite"
    done >"$folder/sources.list"
    apt=(apt-get -q -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$folder/lists" -o "Dir::State::status=$folder/status"
        -o "Dir::Cache::Archives=$folder/archives" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
        -o APT::Install-Recommends=false -o APT::Sandbox::User= -o Debug::NoLocking=true)
    "${apt[@]}" update >"$folder/log" 2>&1 || { echo "$mirror cannot be read; $folder/log says why."; return 1; }
}

# apt_unpack FOLDER "SUITE..." [OPTION...] PACKAGE...: unpacks packages of these Debian suites, with all that they need
# down to the C library, into FOLDER/root, see apt_lists. FOLDER/complete marks the end.
apt_unpack() {
    local folder=$1 package apt
    apt_lists "$1" "$2" || return 1
    shift 2
    "${apt[@]}" install --yes --download-only "$@" >>"$folder/log" 2>&1 ||
        { echo "$* cannot be fetched; $folder/log says why."; return 1; }
    for package in "$folder"/archives/*.deb; do
        dpkg-deb --extract "$package" "$folder/root"
    done
    rm -rf "$folder/archives" "$folder/lists"
    touch "$folder/complete"
}

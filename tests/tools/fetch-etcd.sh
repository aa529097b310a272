#!/bin/sh
# Unpacks real etcd beside the system, for comparison; installs nothing.
#
#   fetch-etcd.sh <dir>
#
# Afterwards <dir>/bin holds runnable etcd-3.5, etcdctl-3.5 and etcdctl-3.4, and, when the Go modules
# can be had, etcd-3.6 and etcdctl-3.6, and <dir>/clients/go the program of tests/go/client. What is already there is kept. $ETCD_BIN and $ETCDCTL_BIN, when
# set, are taken in place of a download.
#
# 3.5 comes from Debian's unstable suite, 3.4's etcdctl from the machine's own suite; both through apt
# state of their own under <dir>, so that the machine's package state is neither read nor changed.
# Programs of unstable may need a newer C library: then it is unpacked too and used for them alone.
# QUORATE_GO=0 skips 3.6.
set -eu

say() { printf '%s\n' "fetch-etcd: $*"; }
die() { printf '%s\n' "fetch-etcd: $*" >&2; exit 1; }

[ $# -eq 1 ] || die "usage: fetch-etcd.sh <dir>"
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
bin=$dir/bin
here=$(cd "$(dirname "$0")" && pwd)

version_of() { # prints 3.5.30 for an etcd or etcdctl binary; fails when it does not run
    ETCDCTL_API=3 "$1" "$2" 2>/dev/null | sed -n 's/^etcd[a-z]* [Vv]ersion: *//p' | head -n 1
}
minor_of() { printf '%s\n' "$1" | cut -d. -f1,2; }

adopt() { # a binary named by the environment stands under its minor version
    v=$(version_of "$1" "$3")
    [ -n "$v" ] || die "$1 does not run or is no $2"
    ln -sf "$1" "$bin/$2-$(minor_of "$v")"
}
[ -z "${ETCD_BIN:-}" ] || adopt "$ETCD_BIN" etcd --version
[ -z "${ETCDCTL_BIN:-}" ] || adopt "$ETCDCTL_BIN" etcdctl version

# --- Debian -----------------------------------------------------------------------------------

sources=/etc/apt/sources.list.d/debian.sources
field() { # field NAME: the value in the first stanza of the machine's source list
    awk -v name="$1:" 'NF == 0 && seen { exit } $1 == name { $1 = ""; sub(/^ /, ""); print; exit } NF && !/^#/ { seen = 1 }' "$sources"
}

aptdir=$dir/apt
apt() { # apt TOOL SUITE args...
    tool=$1 suite=$2
    shift 2
    "$tool" -q -o Dir::State="$aptdir/$suite/state" -o Dir::Cache="$aptdir/$suite/cache" \
        -o Dir::Etc::SourceList="$aptdir/$suite/list.sources" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::status="$aptdir/$suite/status" -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o APT::Get::AllowUnauthenticated=false "$@"
}

prepare() { # prepare SUITE: a package index of that suite
    suite=$1
    [ -f "$aptdir/$suite/ready" ] && return 0
    [ -r "$sources" ] || die "$sources is not there: set ETCD_BIN and ETCDCTL_BIN to binaries instead"
    command -v apt-get >/dev/null && command -v dpkg >/dev/null \
        || die "apt-get and dpkg are needed: set ETCD_BIN and ETCDCTL_BIN to binaries instead"
    mkdir -p "$aptdir/$suite/state/lists/partial" "$aptdir/$suite/cache/archives/partial"
    : > "$aptdir/$suite/status"
    {
        echo "Types: deb"
        echo "URIs: $(field URIs)"
        echo "Suites: $suite"
        echo "Components: main"
        echo "Signed-By: $(field Signed-By)"
    } > "$aptdir/$suite/list.sources"
    say "reading the package index of $suite"
    apt apt-get "$suite" update -o APT::Update::Error-Mode=any > "$aptdir/$suite/update.log" 2>&1 || {
        tail -n 3 "$aptdir/$suite/update.log" >&2
        die "no package index of Debian $suite: this machine has no way to the Debian archive (offline?). Set ETCD_BIN and ETCDCTL_BIN to binaries instead"
    }
    : > "$aptdir/$suite/ready"
}

unpack() { # unpack SUITE PACKAGE ROOT
    suite=$1 package=$2 root=$3
    prepare "$suite"
    mkdir -p "$root" "$aptdir/$suite/debs"
    say "fetching $package of $suite"
    (cd "$aptdir/$suite/debs" && apt apt-get "$suite" download "$package" > "$aptdir/$suite/download.log" 2>&1) || {
        tail -n 3 "$aptdir/$suite/download.log" >&2
        die "cannot download $package of Debian $suite"
    }
    dpkg -x "$(ls -t "$aptdir/$suite/debs/${package}_"*.deb | head -n 1)" "$root"
}

provide() { # provide NAME SUITE PROGRAM ROOT VERSION-ARGUMENT: a runnable $bin/NAME
    name=$1 suite=$2 program=$3 root=$4 argument=$5
    rm -f "$bin/$name"
    if [ -n "$(version_of "$root/usr/bin/$program" "$argument")" ]; then
        ln -s "$root/usr/bin/$program" "$bin/$name"
        return
    fi
    # The machine's C library is too old for it.
    libc=$dir/libc-$suite
    [ -d "$libc" ] || unpack "$suite" libc6 "$libc"
    loader=$(find "$libc" -name 'ld-linux*.so.*' -o -name 'ld64.so.*' | head -n 1)
    lib=$(dirname "$(find "$libc" -name 'libc.so.6' | head -n 1)")
    [ -n "$loader" ] && [ -n "$lib" ] || die "libc6 of $suite holds no loader"
    {
        echo '#!/bin/sh'
        echo "exec '$loader' --library-path '$lib' '$root/usr/bin/$program' \"\$@\""
    } > "$bin/$name"
    chmod +x "$bin/$name"
    [ -n "$(version_of "$bin/$name" "$argument")" ] || die "$program of Debian $suite does not run here"
}

if [ ! -e "$bin/etcd-3.5" ]; then
    unpack unstable etcd-server "$dir/unstable"
    provide etcd-3.5 unstable etcd "$dir/unstable" --version
fi
if [ ! -e "$bin/etcdctl-3.5" ]; then
    unpack unstable etcd-client "$dir/unstable"
    provide etcdctl-3.5 unstable etcdctl "$dir/unstable" version
fi
if [ ! -e "$bin/etcdctl-3.4" ]; then
    own=$(field Suites | awk '{ print $1 }')
    unpack "$own" etcd-client "$dir/own"
    provide etcdctl-3.4 "$own" etcdctl "$dir/own" version
fi

# --- Go modules -------------------------------------------------------------------------------

if [ "${QUORATE_GO:-1}" != 0 ] && command -v go >/dev/null; then
    for program in etcd etcdctl; do
        [ -e "$bin/$program-3.6" ] && continue
        [ -e "$here/../go/go.mod" ] || continue
        package=go.etcd.io/etcd/server/v3
        [ "$program" = etcd ] || package=go.etcd.io/etcd/etcdctl/v3
        say "building $program 3.6 from its Go modules"
        (cd "$here/../go" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 \
            go build -buildvcs=false -trimpath -o "$bin/$program-3.6" "$package") > "$dir/go-$program.log" 2>&1 || {
            tail -n 3 "$dir/go-$program.log" >&2
            say "$program 3.6 cannot be built here; comparing with 3.5 alone"
        }
    done
    # Not kept: it changes with the tests.
    mkdir -p "$dir/clients"
    rm -f "$dir/clients/go"
    (cd "$here/../go" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 \
        go build -buildvcs=false -trimpath -o "$dir/clients/go" ./client) > "$dir/go-client.log" 2>&1 || {
        tail -n 3 "$dir/go-client.log" >&2
        say "etcd's Go client cannot be built here; its test is passed over"
    }
fi

# --- What there is ----------------------------------------------------------------------------

for program in "$bin"/*; do
    argument=version
    case $program in */etcd-*) argument=--version ;; esac
    v=$(version_of "$program" "$argument")
    [ -n "$v" ] || die "$program does not run"
    say "$(basename "$program"): $v"
done

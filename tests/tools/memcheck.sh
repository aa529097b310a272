#!/usr/bin/env bash
# Runs the tests of the engine's unsafe leaf modules, and of the decoders of its bytes, under valgrind's memcheck and under
# AddressSanitizer; under miri, too, where a nightly toolchain has it. Ends with an error when one of them complains.
#
#   bash tests/tools/memcheck.sh            QUORATE_ROUNDS=2000 for more mutated bytes (200)
set -euo pipefail
cd "$(dirname "$0")/../.."
export QUORATE_ROUNDS="${QUORATE_ROUNDS:-200}"

# Buffers, files, hints, append-only cells, memory of pages; pages, runs, chunks and meta pages as arbitrary bytes.
leaves=(store::io:: store::prefetch store::node store::slabs store::tests::basics events:: tests::append_buf fuzz::)

if command -v valgrind >/dev/null; then
    broken="$(mktemp -d)"
    trap 'rm -rf "$broken"' EXIT
    printf '#include <stdlib.h>\nint main(void) { volatile char *p = malloc(8); return p[8] != p[8]; }\n' >"$broken/a.c"
    cc -o "$broken/a" "$broken/a.c"
    if valgrind -q --error-exitcode=9 "$broken/a" 2>/dev/null; then
        echo "memcheck: negative control: a read behind an allocation was not noticed" >&2
        exit 1
    fi
    program="$(cargo test -p engine --lib --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)"
    (cd engine && valgrind -q --error-exitcode=9 "$program" --test-threads=1 "${leaves[@]}")
else
    echo "memcheck: no valgrind here, passed over" >&2
fi

host="$(rustc -vV | sed -n 's/^host: //p')"
# Stable compilers come with the runtime, too, and keep the flag to themselves.
if ls "$(rustc --print sysroot)/lib/rustlib/$host/lib/"librustc*_rt.asan.a >/dev/null 2>&1; then
    export RUSTC_BOOTSTRAP=1
    wrong="$(mktemp -d)"
    trap 'rm -rf "${broken:-$wrong}" "$wrong"' EXIT
    printf 'fn main() { let b = vec![0u8; 8].into_boxed_slice(); let p = b.as_ptr(); let i = std::env::args().count() + 7;\n%s\n' \
        'std::process::exit(i32::from(unsafe { p.add(i).read_volatile() } == 77)) }' >"$wrong/a.rs"
    rustc -Zsanitizer=address -o "$wrong/a" "$wrong/a.rs"
    if "$wrong/a" 2>/dev/null; then
        echo "memcheck: negative control: AddressSanitizer did not notice a read behind an allocation" >&2
        exit 1
    fi
    RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan" \
        cargo test -p engine --lib --target "$host" -- "${leaves[@]}"
    unset RUSTC_BOOTSTRAP
else
    echo "memcheck: no runtime of AddressSanitizer here, passed over" >&2
fi

if cargo +nightly miri --version >/dev/null 2>&1; then
    MIRIFLAGS="-Zmiri-disable-isolation" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" QUORATE_ROUNDS=20 \
        cargo +nightly miri test -p engine --lib -- events:: tests::append_buf store::prefetch store::io::buffer store::node store::slabs
else
    echo "memcheck: no nightly toolchain with miri here, passed over" >&2
fi

#!/usr/bin/env bash
# Runs the tests of the engine's unsafe leaf modules, and of the decoders of its bytes, under valgrind's memcheck; under
# AddressSanitizer and miri, too, where a nightly toolchain has them. Ends with an error when one of them complains.
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
if cargo +nightly --version >/dev/null 2>&1; then
    RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan" \
        cargo +nightly test -p engine --lib --target "$host" -- "${leaves[@]}"
    if cargo +nightly miri --version >/dev/null 2>&1; then
        MIRIFLAGS="-Zmiri-disable-isolation" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" QUORATE_ROUNDS=20 \
            cargo +nightly miri test -p engine --lib -- events:: tests::append_buf store::prefetch store::io::buffer store::node store::slabs
    else
        echo "memcheck: no miri here, passed over" >&2
    fi
else
    echo "memcheck: no nightly toolchain here, so no AddressSanitizer and no miri: passed over" >&2
fi

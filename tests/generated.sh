#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The committed BPF objects are what their sources compile to. Objects differ
# between compilers, so they are compared with the compiler that made them;
# where the distribution has another one only, the sources must compile with it
# and give the same Go declarations.
set -euo pipefail
cd "$(dirname "$0")/.."
want=14

major() { "$1" --version 2>/dev/null | sed -n 's/.*clang version \([0-9]*\).*/\1/p' | head -1; }

cc=""
for c in "clang-$want" clang; do
	if [ "$(major "$c")" = "$want" ]; then cc=$c; break; fi
done

copy=$(mktemp -d /tmp/meshproxy-generated.XXXXXX)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$copy"
(cd "$copy" && rm -f bpf/*_bpfe[lb].o bpf/*_bpfe[lb].go && BPF2GO_CC=${cc:-clang} go generate ./bpf/...)

if [ -n "$cc" ]; then
	diff -rq --exclude='*.orig' bpf "$copy/bpf" || {
		echo "bpf objects are out of date: run 'make generate' with clang $want and commit" >&2
		exit 1
	}
	echo "bpf objects are what clang $want makes of their sources"
	exit 0
fi
for f in bpf/*_bpfe[lb].go; do
	diff "$f" "$copy/$f" || {
		echo "$f is out of date: run 'make generate' with clang $want and commit" >&2
		exit 1
	}
done
(cd "$copy" && go vet ./bpf ./sockmap)
echo "clang $want is not here; clang $(major clang) gives the same declarations"

# SPDX-License-Identifier: Apache-2.0
# Of what `go test -v` says, leaves what tests said that passed.
function name(text) { sub(/^ *(===|---) [A-Z]+:? +/, "", text); sub(/ \([0-9.]+s\)$/, "", text); return text }
BEGIN { lines = 0 }
# A test's name is one of its package only: they come one after the other.
function flush(    i) {
	for (i = 0; i < lines; i++)
		if (result[of[i]] != "PASS") print text[i]
	delete result
	lines = 0
	current = ""
}
function keep(test) { of[lines] = test; text[lines++] = $0 }

/^=== (RUN|PAUSE|CONT|NAME) / { current = name($0); next }
/^ *--- (PASS|FAIL|SKIP): / {
	test = name($0)
	result[test] = substr($0, index($0, "---") + 4, 4)
	# What follows, to the right, is its log, or those of tests in it.
	current = test
	keep(test)
	next
}
/^(ok  |FAIL|\?   )\t/ { flush(); if ($1 == "FAIL") print; next }
/^(PASS|FAIL)$/ { next }
{ keep(current) }
END { flush() }

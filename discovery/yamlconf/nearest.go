// SPDX-License-Identifier: Apache-2.0

package yamlconf

import "strings"

// nearest returns the word that s is most likely a misspelling of, or "".
func nearest(s string, words []string) string {
	best, distance := "", 3
	for _, w := range words {
		if strings.EqualFold(s, w) {
			return w
		}
		if d := edits(strings.ToLower(s), strings.ToLower(w)); d < distance && d < len(w)/2+1 {
			best, distance = w, d
		}
	}
	return best
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

package link

import "strings"

// nearest is the one of some names, in lower case, that is written most like a
// name: of several the first. One that begins with the name is near.
func nearest(name string, names []string) (best string) {
	name = strings.ToLower(name[:min(len(name), 64)])
	least := 1 << 30
	for _, known := range names {
		n := distance(name, known)
		if len(name) > 2 && strings.HasPrefix(known, name) {
			n = min(n, 1)
		}
		if n < least {
			best, least = known, n
		}
	}
	return best
}

// distance is how many letters must be put, changed or left out to make b of a.
func distance(a, b string) int {
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

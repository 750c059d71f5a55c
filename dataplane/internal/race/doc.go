// Package race tells tests whether the race detector is there: it allocates, and
// takes ten times as long.
package race

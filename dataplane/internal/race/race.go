//go:build race

// Package race tells tests whether the race detector is there: it allocates, and
// takes ten times as long.
package race

// Enabled is whether the race detector is there.
const Enabled = true

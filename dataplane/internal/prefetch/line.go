// Package prefetch asks for memory before it is needed.
package prefetch

// LineBytes is what most cores fetch at a time; of one that fetches more, a line is
// asked for twice.
const LineBytes = 64

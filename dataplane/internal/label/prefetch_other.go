//go:build !amd64 && !arm64

package label

// prefetch asks for a line.
func prefetch(l *line) { l[0].Load() }

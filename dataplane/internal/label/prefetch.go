//go:build amd64 || arm64

package label

// prefetch asks for a line, and waits for nothing. A load would not do: the
// processor goes on behind one for no more than some hundred instructions, a
// fraction of the time that memory takes.
//
//go:noescape
func prefetch(l *line)

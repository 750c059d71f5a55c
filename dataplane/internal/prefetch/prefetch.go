//go:build amd64 || arm64

package prefetch

import "unsafe"

// Line asks for the cache line of an address, whatever lies there, and waits for
// nothing. A load would not do: the processor goes on behind one for no more than
// some hundred instructions, a fraction of the time that memory takes.
//
//go:noescape
func Line(p unsafe.Pointer)

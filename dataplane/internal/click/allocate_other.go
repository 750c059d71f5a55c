//go:build !linux

package click

import "os"

// allocate gives a new file its blocks, all zero.
func allocate(f *os.File, size int64) error { return writeZeros(f, size) }

// populate makes every page of a new segment present and writable.
func populate(mem []byte) { touch(mem) }

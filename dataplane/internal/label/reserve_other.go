//go:build !linux

package label

// reserve gives so many lines, all zero. So large a slice begins at a page, and so
// each line at 64 bytes.
func reserve(n int64) []line { return make([]line, n) }

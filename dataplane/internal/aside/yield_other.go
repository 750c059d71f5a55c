//go:build !linux

package aside

import "runtime"

// NewYield gives a function that lets redirects go first.
func NewYield() (yield func()) { return runtime.Gosched }

// KeepP is called by a loop that keeps a P of Go's scheduler until release.
func KeepP() (release func()) { return func() {} }

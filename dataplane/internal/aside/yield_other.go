//go:build !linux

package aside

import "runtime"

// NewYield gives a function that lets redirects go first.
func NewYield() (yield func()) { return runtime.Gosched }

//go:build !linux

package label

func useHugePages([]line) {}
